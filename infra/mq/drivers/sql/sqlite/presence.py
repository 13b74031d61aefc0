"""The workers on one database: which of them live, and what the dead leave behind."""

import asyncio
import math
from collections.abc import Collection
from functools import partial
from pathlib import Path

from infra.mq.drivers.sql.sqlite import inspection, membership
from infra.mq.drivers.sql.sqlite.lockfiles import LockFile, LockFolder
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.drivers.sql.sqlite.writer import Writer
from infra.mq.types import Claim, WorkerInfo


class Member:
    """A worker of this process: the number under which it owns things, and the lock that says that it lives."""

    def __init__(self, number: int, lock: LockFile) -> None:
        self.number = number
        self.lock = lock

    @property
    def alive(self) -> bool:
        return self.lock.held

    @property
    def valid_until(self) -> float:
        return math.inf

    def renew(self) -> bool:
        return self.lock.held

    def abandon(self) -> None:
        self.lock.release()


class Presence:
    """Registers this process's workers, and finds the dead ones of all processes."""

    def __init__(self, path: Path, writer: Writer, watcher: Watcher) -> None:
        self._locks = LockFolder(path)
        self._writer = writer
        self._watcher = watcher

    async def join(self, info: WorkerInfo, now: float) -> Member:
        """Register a live worker: first its lock, so that nobody ever finds it without."""
        lock = await asyncio.to_thread(self._locks.hold, info.id)
        try:
            number = await self._writer.run(partial(membership.join, info=info, now=now))
        except BaseException:
            lock.remove()
            raise
        return Member(number, lock)

    async def leave(self, member: Member, keep: Collection[Claim], now: float) -> None:
        """Give back all but `keep`; with nothing kept, the worker is gone for good."""
        await self._writer.run(partial(membership.leave, worker=member.number, keep=keep, now=now))
        if not keep:
            member.lock.remove()

    async def recover(self, now: float) -> int:
        """Take from dead workers what they hold; return how many deliveries that were."""
        registered = self._watcher.read(membership.members)
        count = 0
        for number, worker, _ in registered:
            lock = self._locks.seize(worker)
            if lock is None:
                continue
            try:
                count += await self._writer.run(partial(membership.take_over, worker=number, now=now))
                lock.remove()
            finally:
                lock.release()
        self._remove_leftovers({worker for _, worker, _ in registered})
        return count

    def live(self) -> list[tuple[str, frozenset[str]]]:
        """Return the id and the subscriptions of each live worker."""
        registered = self._watcher.read(membership.members)
        return [(worker, inspection.names_in(names)) for _, worker, names in registered if self._locks.is_alive(worker)]

    def _remove_leftovers(self, registered: Collection[str]) -> None:
        """Remove the files of workers that died before they were registered, or just after they left."""
        for worker in self._locks.workers().difference(registered):
            lock = self._locks.seize(worker)
            if lock is not None:
                lock.remove()
