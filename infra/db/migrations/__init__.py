"""The migration history of the bus's own tables."""
