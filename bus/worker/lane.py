"""The lane of a listener: the part of a worker that holds the listener's claims."""

from collections import deque

from bus.listeners import Listener
from bus.metrics import ListenerMetrics
from bus.worker.slot import Slot
from infra.mq import Claim


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
        self.starved = False
        """Whether the last fetch asked for nothing; the lane may need claims as soon as a handler ends."""

    @property
    def free(self) -> int:
        """The number of further claims that could start now; negative if claims wait for busy slots."""
        return self.capacity - (len(self.slots) - len(self.opening)) - len(self.waiting)

    def want(self, shared: int) -> int:
        """Return how many claims to fetch: those that can start now, and a number to prefetch.

        The prefetch is proportional to the claims finished since the last fetch, and at most `shared`: a fast listener
        gets large batches, and a slow one holds no claims that another worker could run.
        """
        queued = max(0, -self.free)
        ahead = min(4 * self.done_since_fetch, shared) - queued
        if queued * 2 > ahead + self.capacity:
            return 0  # a fetch of a few claims costs more than it gains
        return max(0, self.free) + max(0, ahead)

    def take(self) -> Claim | None:
        """Return the next claim to run, None when nothing waits."""
        return self.waiting.popleft() if self.waiting else None
