"""The lane of a listener: the part of a worker that holds the listener's claims."""

import math
from collections import deque

from bus.listeners import Listener
from bus.metrics import ListenerMetrics
from bus.worker.slot import Slot
from infra.mq import Claim

AHEAD_SECONDS = 0.25
"""The time, in seconds, within which a listener should handle the claims that its lane holds ahead."""


class Lane:
    """The claims of one listener, waiting and running. A slow listener never uses up another one's capacity."""

    def __init__(self, listener: Listener, metrics: ListenerMetrics) -> None:
        self.listener = listener
        self.capacity = listener.options.concurrency
        """The largest number of the listener's handlers that run at once."""

        self.metrics = metrics
        self.waiting: deque[Claim] = deque()
        self.slots: set[Slot] = set()
        self.opening: set[Slot] = set()
        """Slots whose tasks have not started: each will take one of the waiting claims, or more."""

        self.done_since_fetch = 0
        self._done_before = 0
        """The number of claims finished between the last fetch and the one before."""

        self._busy_at_fetch = 0.0
        self._most_ahead = math.inf
        """The number of claims that the listener handles within `AHEAD_SECONDS`, at the pace of the last fetches."""

        self._starved_at: int | None = None
        """The number of waiting claims at which the lane needs claims; None if the last fetch asked for some."""

    @property
    def free(self) -> int:
        """The number of further claims that could start now; negative if claims wait for busy slots."""
        return self.capacity - (len(self.slots) - len(self.opening)) - len(self.waiting)

    def want(self, shared: int) -> int:
        """Return how many claims to fetch: those that can start now, and a number to prefetch.

        The prefetch is proportional to the claims finished since the last fetch, or between that and the one before,
        at most what the listener handles within `AHEAD_SECONDS`, and at most `shared`: a fast listener gets large
        batches while it handles the batch before, and a slow one holds no claims that another worker could run.
        """
        queued = max(0, -self.free)
        busy = self.metrics.busy_seconds - self._busy_at_fetch
        if self.done_since_fetch and busy > 0:
            self._most_ahead = self.capacity * AHEAD_SECONDS * self.done_since_fetch // busy
        pace = max(self.done_since_fetch, self._done_before)
        ahead = max(0, min(int(min(4 * pace, self._most_ahead)) - queued, shared))
        if queued > ahead + self.capacity:
            ahead = 0  # a fetch of a few claims costs more than it gains
        want = max(0, self.free) + ahead
        if want:
            self._starved_at = None
            self._done_before, self.done_since_fetch = self.done_since_fetch, 0
            self._busy_at_fetch = self.metrics.busy_seconds
        else:
            self._starved_at = max(len(self.waiting), self.capacity) // 2
        return want

    @property
    def is_starved(self) -> bool:
        """Whether the last fetch asked for nothing for the lane, and it needs claims now."""
        return self._starved_at is not None and len(self.waiting) <= self._starved_at

    def take(self) -> Claim | None:
        """Return the next claim to run, None when nothing waits."""
        return self.waiting.popleft() if self.waiting else None
