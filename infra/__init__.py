"""Mechanism: what the bus and the services stand on, and what knows nothing of either."""
