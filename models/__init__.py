"""Tables and events of each domain; data only."""
