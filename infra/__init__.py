"""Infrastructure: databases, queues, mail, logging and telemetry; it imports no other package of the project."""
