"""The commands, and how processes start and stop."""
