"""The worker of the bus: claims deliveries, runs their handlers, and settles the claims.

It imports what the bus shares, and nothing of `bus.publishing`.
"""
