"""The audit service: a journal of each organization's events."""
