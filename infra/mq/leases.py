"""Fractions of the lease time, for the drivers whose leases expire: when to renew, and when a worker is dead."""

RENEW_EVERY = 1 / 3
"""Fraction after which a driver renews the lease by itself, for a claim passed to `keep`."""

RENEWED_WITHIN = 0.6
"""Fraction within which a live worker renews its lease, since renewals are at most half a lease apart.

After a longer gap, of a worker or of the one that observes it, the server may have been unreachable for all workers.
"""

TAKEOVER_MARGIN = 0.2
"""Fraction after the expiry of a lease before other workers take over.

By then the worker has ended the handlers that must not run beside those of its successor, even if its clock is
slower.
"""
