"""The publishing side of the bus: from `publish` to the queue, directly or by the outbox and its relay.

It imports what the bus shares, and nothing of `bus.worker`.
"""
