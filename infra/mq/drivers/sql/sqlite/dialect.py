"""The `QueueDialect` of SQLite: it assigns each operation to a thread and connection."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog

from infra.clock import Clock
from infra.db import Database
from infra.db.cancellation import finish
from infra.db.sqlite import SQLite
from infra.db.sqlite_file import LogCheck
from infra.mq.drivers.sql.dialect import Membership, SqlOptions
from infra.mq.drivers.sql.sqlite import (
    administration,
    broadcasting,
    claiming,
    inspection,
    membership,
    parking,
    publishing,
    registry,
    retiring,
    scheduling,
    settling,
)
from infra.mq.drivers.sql.sqlite.ambient import NotifyAfterCommit, run_in
from infra.mq.drivers.sql.sqlite.cancelled_claims import CancelledClaims
from infra.mq.drivers.sql.sqlite.clock import QueueClock
from infra.mq.drivers.sql.sqlite.connection import Operation, connect, queue_error, starting_a_thread
from infra.mq.drivers.sql.sqlite.presence import LockMembership, Presence
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.drivers.sql.sqlite.writer import LIGHT, Weight, Writer
from infra.mq.errors import QueueClosed, QueueError, QueueUnavailable
from infra.mq.types import (
    BacklogPolicy,
    Claim,
    ClaimLimits,
    DeadLetter,
    Message,
    Outcome,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

Step = Callable[..., tuple[int, Any]]
"""A step of long work from `place` on; it returns its count, and the next place or a false value at the end."""

TimedOperation = Callable[..., T]
"""An operation with the keyword argument `now`, the queue's time."""

PAUSE = 0.005
"""Seconds that long work leaves the write lock free after each of its steps."""

CLAIM_WEIGHT = Weight(100)
"""The weight of a claim in a group: about the number of rows that it changes."""

OLDEST = (3, 38)
"""The first version of SQLite in which RETURNING and the JSON functions are always available."""


class SqliteQueueDialect:
    """The `QueueDialect` of one SQLite file.

    Changes run in the writer's thread, or in the ambient transaction; lookups that take microseconds run in the event
    loop; long reads run in a thread of their own.
    """

    def __init__(self, db: Database, clock: Clock, options: SqlOptions) -> None:
        if not isinstance(db.dialect, SQLite):
            raise QueueUnavailable(f"{db.url}: the queue needs a file")
        # The resolved path: the lock files are beside the real file, whichever link db.url names.
        self._path: Path = db.dialect.path.resolve()
        self._file = db.dialect
        self._db = db
        self.clock = QueueClock(clock)
        self._options = options
        opener = partial(connect, self._path, synchronous=options.synchronous)
        self._log_check = LogCheck(self._file.file)
        self._writer = Writer(
            self._path,
            opener,
            db.write_lock,
            options.patience,
            check=self._log_check,
            check_if_due=self._log_check.check_if_due,
            committed=self._file.log_limit.committed,
        )
        self._watcher = Watcher(self._path, self._file.file.check, options.longest_silence)
        self._presence = Presence(self._path, self._watcher, self._in_steps)
        self._cancelled_claims = CancelledClaims(lambda member, ends: self.settle(member, ends, self.clock.time()))
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
        if self._file.path != self._path:
            raise QueueUnavailable(f"{self._path}: db.url now leads to {self._file.path}: restart this process")
        self._watcher.open()
        try:
            self._watcher.read(registry.tables_exist)
            self._log_check.reset()
            await self._writer.open()
            if not self._watcher.read(self.clock.resume):
                await self._writer.run(self.clock.start)
        except BaseException:
            self._watcher.close()
            raise
        self._file.file.use()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="beneath-queue-reader")

    async def close(self) -> None:
        # Completed even if the caller is cancelled: there is no second close, and the threads would stay.
        closed = await finish(self._close())
        if closed.cancelled is not None:
            raise closed.cancelled
        closed.task.result()

    async def _close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
            self._probe = None
        self._watcher.close()
        await self._writer.close()
        if self._reader is not None:
            self._reader.shutdown(wait=False)
            self._reader = None
            self._file.file.release()

    def watch(self, event: asyncio.Event) -> None:
        self._watcher.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._watcher.remove(event)

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        operation = publishing.Publish(messages, self._options.dedupe_window, self.clock, now=now)
        size = sum([len(it.body) for it in messages])
        await self._join_or_write(operation, Weight(len(messages), size))

    async def cancel(self, message_id: str, now: float) -> bool:
        return await self._join_or_write(self._at(now, partial(scheduling.cancel, message_id=message_id)))

    async def scheduled(self, message_id: str, now: float) -> bool:
        operation = partial(scheduling.scheduled, message_id=message_id, now=now)
        if (transaction := self._db.current()) is not None:
            return await run_in(transaction, operation, self._path)
        return self._watcher.read(operation)

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        kept = self._options.broadcast_kept
        size = sum(len(it) for it in frames)
        operation = partial(broadcasting.broadcast, frames=frames, origin=origin, kept=kept)
        await self._join_or_write(self._at(now, operation), Weight(len(frames), size))

    async def last_broadcast(self) -> int:
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probe_writing())
        return self._watcher.read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        return self._watcher.read(partial(broadcasting.broadcasts_after, after=number, origin=origin))

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        now = self.clock.time()
        if not self._watcher.read(partial(registry.is_declared, subscriptions=subscriptions, broadcasts=broadcasts)):
            operation = partial(registry.declare, subscriptions=subscriptions, broadcasts=broadcasts)
            await self._write(self._at(now, operation))
        visible_at = self._watcher.read(registry.visible_at)
        if visible_at is None:
            # The process that changed it has not recorded that yet: its COMMIT is slow, or the process has ended.
            visible_at = self.clock.time()
            await self._write(partial(registry.mark_visible, now=visible_at))
        return visible_at

    async def registry(self) -> Registry:
        return self._watcher.read(registry.registry)

    async def join(self, info: WorkerInfo, now: float) -> LockMembership:
        operation = self._at(now, partial(membership.join, info=info))
        return await self._presence.join(info, lambda: self._writer.run(operation))

    async def leave(self, member: Membership, keep: Collection[Claim], now: float) -> None:
        await self._presence.leave(_own(member), keep, self.clock.time)
        self._cancelled_claims.forget(_own(member))
        self._watcher.notify()

    async def next_due(self, names: Collection[str]) -> float | None:
        await self._cancelled_claims.release()
        return self._watcher.read(partial(claiming.next_due, names=names))

    async def claim(self, member: Membership, wants: Mapping[str, int], limits: ClaimLimits, now: float) -> list[Claim]:
        await self._cancelled_claims.release()
        own = _own(member)

        def operation(db: sqlite3.Connection, *, now: float) -> list[Claim]:
            if own.leaving:
                raise QueueClosed("this worker has left")
            return claiming.claim(db, own.number, wants, limits, now=now)

        on_cancelled = partial(self._cancelled_claims.add, own)
        return await self._writer.run(self._at(now, operation), CLAIM_WEIGHT, on_cancelled=on_cancelled, accepts=False)

    async def settle(self, member: Membership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        fenced: list[Settlement] = []
        for step in settling.in_steps(settlements):
            operation = partial(settling.settle, worker=_own(member).number, settlements=step)
            fenced += await self._writer.run(self._at(now, operation), Weight(len(step)), accepts=False)
            if any(it.claim.ordered or it.outcome is not Outcome.DONE for it in step):
                self._watcher.notify()
        return fenced

    async def isolate(self, member: Membership, claim: Claim) -> bool:
        return await self._writer.run(partial(settling.isolate, worker=_own(member).number, claim=claim))

    async def recover(self, now: float) -> int:
        await self._cancelled_claims.release()
        count = await self._presence.recover(self.clock.time)
        if count:
            self._watcher.notify()
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        count = 0
        for it in self._watcher.read(partial(parking.needed, known=known)):
            count += await self._in_steps(partial(parking.unpark_some, it=it, clock=self.clock.time))
        return count

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in self._presence.live()]
        return await self._read(partial(inspection.stats, live=live, now=now))

    async def warnings(self) -> list[str]:
        return await self._read(inspection.interrupted_retirements)

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        return await self._read(
            partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        )

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        return await self._with_dead_letters(dead_ids, partial(administration.retry_some, now=now))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._with_dead_letters(dead_ids, administration.discard_some)

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._write(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        await self._write(self._at(now, partial(administration.unblock, name=name, key=ordering_key, skip=skip)))

    async def retire(self, name: str, event: str | None, backlog: BacklogPolicy, now: float) -> int:
        found = await self._read(partial(retiring.waiting, name=name, event=event)) if backlog == "refuse" else None
        live = self._presence.live()
        begin = partial(retiring.begin, name=name, event=event, backlog=backlog, live=live, found=found)
        walk = await self._write(begin)
        count = await self._in_steps(partial(retiring.remove_some, clock=self.clock.time), walk)
        await self._write(self._at(now, partial(retiring.finish, walk=walk)))
        return count

    async def _with_dead_letters(
        self, dead_ids: Sequence[str], work: Callable[[sqlite3.Connection, Sequence[int]], tuple[int, int]]
    ) -> int:
        numbers = administration.numbers_of(dead_ids)

        def step(db: sqlite3.Connection, place: int) -> tuple[int, int | None]:
            count, seen = work(db, numbers[place:])
            return count, place + seen if place + seen < len(numbers) else None

        return await self._in_steps(step, 0) if numbers else 0

    async def _in_steps(self, step: Step, start: object = None) -> int:
        """Run `step` in transaction after transaction, each from where the last ended; return the sum of its counts."""
        total, place = 0, start
        while True:
            count, place = await self._write(partial(step, place=place))
            total += count
            if not place:
                return total
            # In real time: other processes poll the file's lock, and acquire it in between.
            await asyncio.sleep(PAUSE)

    def _at(self, now: float, operation: TimedOperation[T]) -> Operation[T]:
        """Bind an operation to the time at which it gets the write lock, which decides what is due."""

        def run(db: sqlite3.Connection) -> T:
            return operation(db, now=self.clock.reach(db, now))

        return run

    async def _join_or_write(self, operation: Operation[T], weight: Weight = LIGHT) -> T:
        transaction = self._db.current()
        if transaction is None:
            return await self._write(operation, weight)
        result = await run_in(transaction, operation, self._path)
        transaction.participant(self, lambda: NotifyAfterCommit(self._watcher.notify))
        return result

    async def _write(self, operation: Operation[T], weight: Weight = LIGHT) -> T:
        result = await self._writer.run(operation, weight)
        self._watcher.notify()
        return result

    async def _read(self, operation: Operation[T]) -> T:
        with starting_a_thread(self._path):
            reading = asyncio.get_running_loop().run_in_executor(self._reader, self._read_apart, operation)
        return await reading

    def _read_apart(self, operation: Operation[T]) -> T:
        try:
            with closing(connect(self._path, read_only=True)) as db:
                self._file.file.check()
                return operation(db)
        except sqlite3.Error as error:
            raise queue_error(error, self._path) from error

    async def _probe_writing(self) -> None:
        """Count an interruption when no write succeeds for long, because senders of broadcasts may have failed."""
        # An outage as long as the longest silence always contains half of that time in one probe.
        pause, longest = self._options.longest_silence / 4, self._options.longest_silence / 2
        while True:
            groups = self._writer.groups
            await asyncio.sleep(pause)
            if self._writer.groups != groups:
                continue
            began = time.monotonic()
            try:
                await self._writer.run(_nothing)
            except Exception as error:  # noqa: BLE001  # any error means that writes may fail in all processes
                if not isinstance(error, QueueError):
                    _log.exception("write probe failed")
                self._watcher.interrupt()
            else:
                if time.monotonic() - began > longest:
                    self._watcher.interrupt()


def _nothing(_: sqlite3.Connection) -> None:
    """Do nothing, in a transaction that acquires the write lock."""


def _own(member: Membership) -> LockMembership:
    return cast("LockMembership", member)
