"""Infrastructure: databases, queues, mail, logging and telemetry; it knows nothing of the bus and the services."""
