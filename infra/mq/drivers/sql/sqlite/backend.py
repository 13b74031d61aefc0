"""The queue on SQLite, put together: who executes what, and on which connection."""

import asyncio
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

from infra.clock import Clock
from infra.db import Database
from infra.mq.drivers.sql.backend import Membership, Options
from infra.mq.drivers.sql.sqlite import (
    administration,
    broadcasting,
    claiming,
    inspection,
    membership,
    publishing,
    registry,
    settling,
)
from infra.mq.drivers.sql.sqlite.ambient import Announcement, run_in
from infra.mq.drivers.sql.sqlite.connection import Operation, connect, queue_error
from infra.mq.drivers.sql.sqlite.presence import Member, Presence
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.drivers.sql.sqlite.writer import Writer
from infra.mq.errors import QueueError, QueueUnavailable
from infra.mq.types import (
    Claim,
    DeadLetter,
    Message,
    Outcome,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

T = TypeVar("T")

OLDEST = (3, 38)
"""The first version of SQLite that always has RETURNING and the JSON functions."""


class SqliteBackend:
    """A `Backend` on one SQLite file.

    What changes something runs in the writer's thread, or in the ambient transaction; look-ups that take microseconds
    run in the event loop; reads that may be long have a thread of their own.
    """

    def __init__(self, db: Database, clock: Clock, options: Options) -> None:
        if db.path is None:
            raise QueueUnavailable(f"{db.url}: the queue needs a file")
        self._path: Path = db.path
        self._db = db
        self.clock = clock
        self._options = options
        opener = partial(connect, self._path, synchronous=options.synchronous)
        self._writer = Writer(self._path, opener, db.write_lock, options.patience)
        self._watcher = Watcher(self._path, options.longest_silence)
        self._presence = Presence(self._path, self._writer, self._watcher)
        self._reader: ThreadPoolExecutor | None = None
        self._probe: asyncio.Task[None] | None = None

    @property
    def interruptions(self) -> int:
        return self._watcher.interruptions

    async def open(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise QueueUnavailable(
                f"this Python has SQLite {sqlite3.sqlite_version}; the queue needs {wanted} or newer"
            )
        self._watcher.open()
        try:
            self._watcher.read(registry.changed_at)
            await self._writer.open()
        except BaseException:
            self._watcher.close()
            raise
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="beneath-queue-reader")

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
            self._probe = None
        self._watcher.close()
        await self._writer.close()
        if self._reader is not None:
            self._reader.shutdown(wait=False)
            self._reader = None

    def watch(self, event: asyncio.Event) -> None:
        self._watcher.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._watcher.remove(event)

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        window = self._options.dedupe_window
        await self._join_or_write(partial(publishing.publish, messages=messages, now=now, dedupe_window=window))

    async def cancel(self, message_id: str, now: float) -> bool:
        return await self._join_or_write(partial(publishing.cancel, message_id=message_id, now=now))

    async def scheduled(self, message_id: str, now: float) -> bool:
        operation = partial(publishing.scheduled, message_id=message_id, now=now)
        if (transaction := self._db.current()) is not None:
            return await run_in(transaction, operation, self._path)
        return self._watcher.read(operation)

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        kept = self._options.broadcast_kept
        await self._join_or_write(partial(broadcasting.broadcast, frames=frames, origin=origin, now=now, kept=kept))

    async def last_broadcast(self) -> int:
        if self._probe is None:
            self._probe = asyncio.create_task(self._probe_writing())
        return self._watcher.read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        return self._watcher.read(partial(broadcasting.broadcasts_after, after=number, origin=origin))

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        if self._watcher.read(partial(registry.is_declared, subscriptions=subscriptions, broadcasts=broadcasts)):
            return self._watcher.read(registry.changed_at)
        return await self._write(lambda db: registry.declare(db, subscriptions, broadcasts, self.clock.time()))

    async def registry(self) -> Registry:
        return self._watcher.read(registry.registry)

    async def join(self, info: WorkerInfo, now: float) -> Member:
        return await self._presence.join(info, now)

    async def leave(self, member: Membership, keep: Collection[Claim], now: float) -> None:
        await self._presence.leave(_own(member), keep, now)
        self._watcher.notify()

    async def next_due(self, names: Collection[str]) -> float | None:
        return self._watcher.read(partial(claiming.next_due, names=names))

    async def claim(self, member: Membership, wants: Mapping[str, int], now: float) -> list[Claim]:
        return await self._writer.run(partial(claiming.claim, worker=_own(member).number, wants=wants, now=now))

    async def settle(self, member: Membership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        operation = partial(settling.settle, worker=_own(member).number, settlements=settlements, now=now)
        fenced = await self._writer.run(operation)
        if any(it.claim.ordered or it.outcome is not Outcome.DONE for it in settlements):
            self._watcher.notify()
        return fenced

    async def isolate(self, member: Membership, claim: Claim) -> bool:
        return await self._writer.run(partial(settling.isolate, worker=_own(member).number, claim=claim))

    async def recover(self, now: float) -> int:
        count = await self._presence.recover(now)
        if count:
            self._watcher.notify()
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        if not self._watcher.read(partial(membership.has_parked, known=known)):
            return 0
        return await self._write(partial(membership.unpark, known=known, now=now))

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in self._presence.live()]
        return await self._read(partial(inspection.stats, live=live, now=now))

    async def warnings(self) -> list[str]:
        return []

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        return await self._read(
            partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        )

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        return await self._write(partial(administration.retry_dead, dead_ids=dead_ids, now=now))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._write(partial(administration.discard_dead, dead_ids=dead_ids))

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._write(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        await self._write(partial(administration.unblock, name=name, key=ordering_key, now=now, skip=skip))

    async def retire(
        self, name: str, event: str | None, backlog: Literal["refuse", "discard", "dead"], now: float
    ) -> int:
        live = self._presence.live()
        operation = partial(administration.retire, name=name, event=event, backlog=backlog, live=live, now=now)
        return await self._write(operation)

    async def _join_or_write(self, operation: Operation[T]) -> T:
        transaction = self._db.current()
        if transaction is None:
            return await self._write(operation)
        result = await run_in(transaction, operation, self._path)
        transaction.participant(self, lambda: Announcement(self._watcher.notify))
        return result

    async def _write(self, operation: Operation[T]) -> T:
        result = await self._writer.run(operation)
        self._watcher.notify()
        return result

    async def _read(self, operation: Operation[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read_apart, operation)

    def _read_apart(self, operation: Operation[T]) -> T:
        try:
            with closing(connect(self._path, read_only=True)) as db:
                return operation(db)
        except sqlite3.Error as error:
            raise queue_error(error, self._path) from error

    async def _probe_writing(self) -> None:
        """Count it as an interruption when nobody could write for long: who sends broadcasts may have given up."""
        # So that whatever lasts for the whole of the longest silence is waited for by one probe for half of it.
        pause, longest = self._options.longest_silence / 4, self._options.longest_silence / 2
        while True:
            groups = self._writer.groups
            await asyncio.sleep(pause)
            if self._writer.groups != groups:
                continue
            began = time.monotonic()
            try:
                await self._writer.run(_nothing)
            except QueueError:
                self._watcher.interrupt()
            else:
                if time.monotonic() - began > longest:
                    self._watcher.interrupt()


def _nothing(_: sqlite3.Connection) -> None:
    """Take the write lock, and give it back."""


def _own(member: Membership) -> Member:
    return cast("Member", member)
