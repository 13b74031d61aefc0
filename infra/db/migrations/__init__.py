"""The history of the bus's own tables."""
