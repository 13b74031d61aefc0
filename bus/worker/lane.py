"""One listener's share of a worker: what waits for it here, and what runs."""

from collections import deque

from bus.listeners import Listener
from bus.metrics import ListenerMetrics
from bus.worker.slot import Slot
from infra.mq import Claim


class Lane:
    """Claims of one listener, waiting and running. A slow lane never takes another one's place."""

    def __init__(self, listener: Listener, metrics: ListenerMetrics) -> None:
        self.listener = listener
        self.metrics = metrics
        self.waiting: deque[Claim] = deque()
        self.slots: set[Slot] = set()
        self.opening: set[Slot] = set()
        """Slots that have not begun: each is about to take one of the waiting claims."""

        self.done_since_fetch = 0
        self.starved = False
        """It wanted nothing at the last fetch, but may want more as soon as something ends."""

    @property
    def free(self) -> int:
        """How many more claims could start at once."""
        return self.listener.concurrency - len(self.slots) - self._queued

    def want(self, shared: int) -> int:
        """Return how many claims to fetch: those that can start, and as many ahead as its pace deserves.

        Reading ahead follows what the lane finished since the last fetch, so that a fast listener gets large batches
        and a slow one does not hoard what another worker could be doing. `shared` bounds it.
        """
        queued = self._queued
        ahead = min(4 * self.done_since_fetch, shared) - max(0, queued + len(self.slots) - self._capacity)
        if queued * 2 > ahead + self._capacity:
            return 0  # enough for now: fetching by the handful costs more than it brings
        return max(0, self.free) + max(0, ahead)

    @property
    def _queued(self) -> int:
        """How many claims wait for a slot that runs something else."""
        return max(0, len(self.waiting) - len(self.opening))

    @property
    def _capacity(self) -> int:
        return self.listener.concurrency

    def take(self) -> Claim | None:
        """Return the next claim to run, None when nothing waits."""
        return self.waiting.popleft() if self.waiting else None
