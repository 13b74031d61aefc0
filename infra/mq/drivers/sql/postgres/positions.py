"""The positions in the indexes from which a process claims, to skip dead rows that PostgreSQL cannot remove."""

import math
import time
from collections.abc import Collection, Mapping

SCHEDULED = ""
"""The name that stands for all scheduled messages."""

SLOW = 0.003
"""Seconds of server time from which a scan from the start counts as slow: it has read over many dead rows."""

SCAN_INTERVAL = 1.0
"""Seconds between two scans from the start."""

SHARE = 0.05
"""The fraction of time that scans from the start may take."""

MARGIN = 0.1
"""Seconds before the latest claim that each claim searches again, for differences of clocks and late commits."""


class Positions:
    """The end of the latest claim of each subscription, where claims begin while scans from the start are slow.

    While a transaction stays open, PostgreSQL keeps all rows handled since, also in the indexes, and every claim from
    the start would read over all of them. Deliveries that become due before a position, because they were released or
    their publisher committed late, are found by the next scan from the start.
    """

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._slow = False
        self._scan_at = 0.0

    @property
    def scan_in(self) -> float | None:
        """Seconds until the next scan from the start; None while every claim begins at the start."""
        return max(0.0, self._scan_at - time.monotonic()) if self._slow else None

    @property
    def scan_due(self) -> bool:
        """Whether it is time to scan from the start, and to pass the result to `scanned`."""
        return time.monotonic() >= self._scan_at

    def starts(self, names: Collection[str]) -> list[float]:
        """Return for each name the due time from which to search."""
        if not self._slow:
            return [-math.inf] * len(names)
        return [self._latest.get(name, -math.inf) - MARGIN for name in names]

    def claimed(self, latest: Mapping[str, float]) -> None:
        """Record the due times of the latest claims."""
        for name, due_at in latest.items():
            self._latest[name] = max(due_at, self._latest.get(name, due_at))

    def scanned(self, seconds: float, due: Mapping[str, float]) -> None:
        """Record the server time of a scan from the start, and the first due times that it found."""
        self._slow = seconds > SLOW
        self._scan_at = time.monotonic() + max(SCAN_INTERVAL, seconds / SHARE)
        for name, due_at in due.items():
            if due_at < self._latest.get(name, -math.inf) - MARGIN:
                del self._latest[name]
