"""The migration history of the bus's tables. `versions/` here has those of the outbox and the inbox.

The migrations of the queue's tables belong to the SQL driver; the composition root names both packages.
"""
