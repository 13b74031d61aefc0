"""The notification service: sends emails about events."""
