"""The liveness and the claims of one worker."""

import asyncio
import threading
from typing import Protocol

from infra.clock import Clock
from infra.mq.types import ClaimLimits, WorkerInfo


class Unit(Protocol):
    """The unit that a claim owns: one unordered delivery, or one mailbox."""

    def release(self) -> None:
        """Release the unit, unchanged and due at once."""
        ...

    def take_over(self) -> int:
        """Take the unit over from a dead worker, due at once; return the number of deliveries that it held."""
        ...


class MemoryWorker:
    """The liveness and the claims of one worker. `alive`, `renew` and `abandon` may be called from any thread."""

    def __init__(self, info: WorkerInfo, limits: ClaimLimits, clock: Clock, lease: float) -> None:
        self.info = info
        self.limits = limits
        self.holding: dict[Unit, None] = {}
        """The units that the worker owns, in the order of the claims."""

        self.kept: set[Unit] = set()
        self.changed = asyncio.Event()
        self.closed = False
        self._clock = clock
        self._lease = lease
        self._lock = threading.Lock()
        self._renewed = clock.monotonic()
        self._dead = False

    def alive(self) -> bool:
        """Whether the worker is alive; once False, it stays False."""
        with self._lock:
            # A closed worker with a kept claim renews no more, but stays alive until the queue is closed.
            if not self.closed and self._clock.monotonic() - self._renewed >= self._lease:
                self._dead = True
            return not self._dead

    @property
    def valid_until(self) -> float:
        """Monotonic time at which the lease expires."""
        return self._renewed + self._lease

    def renew(self) -> bool:
        """Renew the lease; False if it is lost."""
        if not self.alive():
            return False
        with self._lock:
            self._renewed = self._clock.monotonic()
            return not self._dead

    def abandon(self) -> None:
        """End the lease: the worker is dead from now on."""
        with self._lock:
            self._dead = True
