"""A worker as the store sees it: whether it lives, and what it owns."""

import asyncio
import threading
from typing import Protocol

from infra.clock import Clock
from infra.mq.types import WorkerInfo


class Unit(Protocol):
    """What a claim owns: one unordered delivery, or one mailbox."""

    def give_back(self) -> None:
        """Make it due at once, unchanged."""
        ...

    def take_over(self) -> int:
        """Make it due at once after its worker's death; return how many deliveries that charged."""
        ...


class Worker:
    """Liveness and holdings of one consumer. `alive`, `renew` and `abandon` may be called from any thread."""

    def __init__(self, info: WorkerInfo, clock: Clock, lease: float) -> None:
        self.info = info
        self.holding: dict[Unit, None] = {}
        """What it owns, in the order in which it was claimed."""

        self.kept: set[Unit] = set()
        self.changed = asyncio.Event()
        self.closed = False
        self._clock = clock
        self._lease = lease
        self._lock = threading.Lock()
        self._renewed = clock.monotonic()
        self._dead = False

    def alive(self) -> bool:
        """Whether it may still own anything; once False, False forever."""
        with self._lock:
            # A closed worker that kept a claim renews no more: it lives as long as this process does.
            if not self.closed and self._clock.monotonic() - self._renewed >= self._lease:
                self._dead = True
            return not self._dead

    @property
    def valid_until(self) -> float:
        """Until when it lives without being renewed."""
        return self._renewed + self._lease

    def renew(self) -> bool:
        """Start the lease anew, unless it is lost."""
        if not self.alive():
            return False
        with self._lock:
            self._renewed = self._clock.monotonic()
            return not self._dead

    def abandon(self) -> None:
        """Die."""
        with self._lock:
            self._dead = True
