"""Detection of dead workers by observing whether they renew their leases."""

import threading
from collections.abc import Iterable
from typing import NamedTuple

from infra.mq.leases import RENEWED_WITHIN, TAKEOVER_MARGIN

ABANDONED = 0.0
"""The end of a lease that was abandoned, or whose worker is being recovered."""


class _Seen(NamedTuple):
    lease_until: float
    since: float


class LeaseObserver:
    """A record of how long each lease has been unchanged, by this process's monotonic clock.

    The end of a lease is only compared with its earlier value, so that no step of a wall clock makes a live worker look
    dead or a dead one alive. Whatever prevented this process from observing may have prevented other workers from
    renewing; so after a gap the full time starts again.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}
        self._observed_at = -float("inf")

    def observe(self, leases: Iterable[tuple[int, float]], asked_at: float, answered_at: float) -> None:
        """Record the number and the lease end of every worker, read between the two monotonic times."""
        with self._lock:
            anew = asked_at - self._observed_at > self._lease * RENEWED_WITHIN
            self._observed_at = max(self._observed_at, answered_at)
            seen: dict[int, _Seen] = {}
            for number, lease_until in leases:
                before = self._seen.get(number)
                if before is None or anew or before.lease_until != lease_until:
                    before = _Seen(lease_until, answered_at)
                seen[number] = before
            self._seen = seen

    def dead(self, now: float) -> list[tuple[int, float]]:
        """Return the number and the lease end of every worker that is dead at the monotonic time `now`.

        `now` must be from before the latest observation was requested.
        """
        with self._lock:
            return [
                (number, it.lease_until)
                for number, it in self._seen.items()
                if it.lease_until == ABANDONED or now - it.since >= self._lease * (1 + TAKEOVER_MARGIN)
            ]
