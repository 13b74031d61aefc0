"""The shares of a lease by which drivers decide that a worker is dead, on drivers whose leases expire."""

RENEW_EVERY = 1 / 3
"""Time between two renewals that a driver makes itself, for a claim passed to `keep`."""

RENEWED_WITHIN = 0.6
"""Time within which a live worker renews its lease, since renewals are at most half a lease apart.

After a longer pause of a worker, or of the one that observes it, the server may have been unreachable for all workers.
"""

TAKEOVER_MARGIN = 0.2
"""Time after the expiry of a lease before other workers take over.

By then the worker has ended what must not run beside its successor, even if its clock runs slower.
"""
