"""The worker of the bus: claims deliveries, runs their handlers, and settles the claims."""
