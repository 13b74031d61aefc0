"""The event bus: registration, publish, delivery, and the worker."""
