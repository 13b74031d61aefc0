"""The workers on one database: registration, and recovery of the claims of dead ones."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

from infra.mq.drivers.sql.sqlite import inspection, membership
from infra.mq.drivers.sql.sqlite.connection import starting_a_thread
from infra.mq.drivers.sql.sqlite.lockfiles import LockFile, LockFolder
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.types import Claim, WorkerInfo

MISSING_PATIENCE = 10.0
"""Seconds without a lock file after which a worker is considered dead; a live one restores its file in `renew`."""

Steps = Callable[[Callable[..., tuple[int, bool]]], Awaitable[int]]
"""A function that runs a step in transaction after transaction until the step reports its end; returns the sum."""


class LockMembership:
    """A worker of this process: the number that marks its claims as owner, and its lock file."""

    def __init__(self, number: int, lock: LockFile) -> None:
        self.number = number
        self.lock = lock
        self.leaving = False
        """Whether the worker is leaving and so claims no more, although it may still be registered."""

    @property
    def alive(self) -> bool:
        return self.lock.held

    @property
    def valid_until(self) -> float:
        return math.inf

    def renew(self) -> bool:
        return self.lock.restore()

    def abandon(self) -> None:
        self.lock.release()


class _Holding:
    """The lock of a joining worker; it is acquired in a thread, which continues if the waiting task is cancelled."""

    def __init__(self, locks: LockFolder, worker: str) -> None:
        self._locks = locks
        self._worker = worker
        self._guard = threading.Lock()
        self._lock: LockFile | None = None
        self._given_up = False

    def hold(self) -> LockFile:
        """Acquire the lock; remove it at once if `give_up` was called. Called in a thread.

        Raises:
            QueueUnavailable: the lock cannot be acquired.
        """
        lock = self._locks.hold(self._worker)
        with self._guard:
            self._lock = lock
            if self._given_up:
                lock.remove()
        return lock

    def give_up(self) -> None:
        """Remove the lock, now or as soon as the thread has acquired it."""
        with self._guard:
            self._given_up = True
            if self._lock is not None:
                self._lock.remove()


class Presence:
    """Registration of this process's workers, and recovery of the claims of dead workers of all processes."""

    def __init__(self, path: Path, watcher: Watcher, steps: Steps) -> None:
        self._path = path
        self._locks = LockFolder(path)
        self._watcher = watcher
        self._steps = steps
        self._missing: dict[str, float] = {}

    async def join(self, info: WorkerInfo, register: Callable[[], Awaitable[int]]) -> LockMembership:
        """Register a live worker; its lock comes first, so that no process sees it registered without one."""
        holding = _Holding(self._locks, info.id)
        try:
            with starting_a_thread(self._path):
                locking = asyncio.get_running_loop().run_in_executor(None, holding.hold)
            lock = await locking
            return LockMembership(await register(), lock)
        except BaseException:
            holding.give_up()
            raise

    async def leave(self, member: LockMembership, keep: Collection[Claim], clock: Callable[[], float]) -> None:
        """Release all claims but `keep`; unregister the worker if it keeps none."""
        member.leaving = True
        await self._steps(partial(membership.leave_some, worker=member.number, keep=keep, clock=clock))
        if not keep:
            member.lock.remove()

    async def recover(self, clock: Callable[[], float]) -> int:
        """Take over the claims of dead workers; return the number of deliveries."""
        registered = self._watcher.read(membership.members)
        count = 0
        for number, worker, _ in registered:
            lock = self._locks.seize(worker)
            if lock is None or (not lock.held and not self._is_overdue(worker)):
                continue
            try:
                count += await self._take_over(number, clock)
                lock.remove()
            finally:
                lock.release()
        for number in self._watcher.read(membership.unknown_owners):
            count += await self._take_over(number, clock)
        self._remove_leftovers({worker for _, worker, _ in registered})
        return count

    def live(self) -> list[tuple[str, frozenset[str]]]:
        """Return the id and the subscriptions of each live worker."""
        registered = self._watcher.read(membership.members)
        return [(worker, inspection.names_in(names)) for _, worker, names in registered if self._locks.is_alive(worker)]

    async def _take_over(self, number: int, clock: Callable[[], float]) -> int:
        return await self._steps(partial(membership.take_over_some, worker=number, clock=clock))

    def _is_overdue(self, worker: str) -> bool:
        """Return whether a worker's lock file has been missing for `MISSING_PATIENCE`."""
        now = time.monotonic()
        return now - self._missing.setdefault(worker, now) >= MISSING_PATIENCE

    def _remove_leftovers(self, registered: Collection[str]) -> None:
        """Remove the lock files of workers that died before they were registered, or just after they left."""
        for worker in self._missing.keys() - registered:
            del self._missing[worker]
        for worker in self._locks.workers().difference(registered):
            lock = self._locks.seize(worker)
            if lock is not None:
                lock.remove()
