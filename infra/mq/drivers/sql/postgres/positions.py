"""From where a process looks for due work, where what was handled cannot be removed and stands in the way."""

import math
import time
from collections.abc import Collection, Mapping

SCHEDULED = ""
"""In place of a subscription's name: all scheduled messages."""

SLOW = 0.003
"""A look from the very start that takes the server longer, in seconds, has read past much that was handled."""

SCAN_INTERVAL = 1.0
"""Seconds between two looks from the start."""

SHARE = 0.05
"""Of the time, looks from the start may take so much."""

MARGIN = 0.1
"""Seconds before the latest claim that are looked at again: clocks differ, and some commit later than others."""


class Positions:
    """Where the latest claim of each subscription ended, to begin there if a look from the start has become slow.

    While a transaction is left open somewhere, PostgreSQL keeps every row that was handled since, in the indexes too,
    and all claims would read past all of them. What becomes due before a position, since it was given back or its
    publisher committed late, is noticed at the next look from the start.
    """

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._slow = False
        self._scan_at = 0.0

    @property
    def scan_in(self) -> float | None:
        """In how many seconds a look from the start is due; None if every look is one."""
        return max(0.0, self._scan_at - time.monotonic()) if self._slow else None

    @property
    def scan_due(self) -> bool:
        """Whether it is time to look from the start, and to tell `looked`."""
        return time.monotonic() >= self._scan_at

    def starts(self, names: Collection[str]) -> list[float]:
        """Return the due time for each name from which on to look."""
        if not self._slow:
            return [-math.inf] * len(names)
        return [self._latest.get(name, -math.inf) - MARGIN for name in names]

    def claimed(self, latest: Mapping[str, float]) -> None:
        """Note when what was claimed last was due."""
        for name, due_at in latest.items():
            self._latest[name] = max(due_at, self._latest.get(name, due_at))

    def scanned(self, seconds: float, due: Mapping[str, float]) -> None:
        """Note how long a look from the start took the server, and what was due first."""
        self._slow = seconds > SLOW
        self._scan_at = time.monotonic() + max(SCAN_INTERVAL, seconds / SHARE)
        for name, due_at in due.items():
            if due_at < self._latest.get(name, -math.inf) - MARGIN:
                del self._latest[name]
