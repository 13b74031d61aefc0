"""Which workers have stopped renewing their leases, as this process observes them."""

import threading
from collections.abc import Iterable
from typing import NamedTuple

TIMES = 1.2
"""In leases: how long a lease is seen unchanged until its worker is dead. After one its worker ends what must not run
beside its successor, for which it has the rest."""

GAP = 0.6
"""In leases: observations further apart than that begin anew. Renewals are at most half a lease apart."""

ABANDONED = 0.0
"""The end of a lease that was given up, or whose worker is being recovered."""


class _Seen(NamedTuple):
    lease_until: float
    since: float


class LeaseObserver:
    """Counts by this process's monotonic clock alone how long each lease has been seen unchanged.

    The end of a lease is only compared with what it was before, so that no step of a clock makes a living worker
    dead, or a dead one live on. What kept this process from observing kept other workers from renewing: after a gap
    they have the whole time again.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}
        self._observed_at = -float("inf")

    def observe(self, leases: Iterable[tuple[int, float]], asked_at: float, answered_at: float) -> None:
        """Take in the number and the end of the lease of every worker, read between the two monotonic times."""
        with self._lock:
            anew = asked_at - self._observed_at > self._lease * GAP
            self._observed_at = max(self._observed_at, answered_at)
            seen: dict[int, _Seen] = {}
            for number, lease_until in leases:
                before = self._seen.get(number)
                if before is None or anew or before.lease_until != lease_until:
                    before = _Seen(lease_until, answered_at)
                seen[number] = before
            self._seen = seen

    def dead(self, now: float) -> list[tuple[int, float]]:
        """Return the number and the end of the lease of every worker that is dead at the monotonic time `now`.

        `now` must be from before the latest observation was asked for.
        """
        with self._lock:
            return [
                (number, it.lease_until)
                for number, it in self._seen.items()
                if it.lease_until == ABANDONED or now - it.since >= self._lease * TIMES
            ]
