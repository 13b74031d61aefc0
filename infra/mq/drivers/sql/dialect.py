"""What the queue's flow asks of one kind of database; everything that is written in SQL is behind this seam."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from infra.clock import Clock
from infra.db import Database
from infra.mq.errors import QueueUnavailable
from infra.mq.types import (
    Claim,
    DeadLetter,
    Message,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlOptions:
    """How a dialect works. Times are in seconds."""

    dedupe_window: float = 120.0
    """How long the ids of messages with `dedupe` are remembered."""

    broadcast_kept: float = 60.0
    """How long broadcasts are kept for processes that are late."""

    longest_silence: float = 5.0
    """After how long without a look at the database broadcasts may have been missed."""

    patience: float = 10.0
    """How long a write waits for other writers."""

    lease: float = 10.0
    """PostgreSQL: after how long without a sign of life a worker counts as dead."""

    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """SQLite: whether a commit survives a power cut, or only the end of the process."""


class Membership(Protocol):
    """A registered worker, as its own process holds it."""

    @property
    def alive(self) -> bool:
        """Whether others take this worker for alive, as far as this process knows."""
        ...

    @property
    def valid_until(self) -> float:
        """As `Consumer.valid_until`."""
        ...

    def renew(self) -> bool:
        """Say that it is alive; False when that is over. From any thread."""
        ...

    def abandon(self) -> None:
        """Let others take it for dead. From any thread."""
        ...


class QueueDialect(Protocol):
    """The queue's state changes, each one atomic and durable, and ways to learn of those of others.

    `publish`, `cancel`, `scheduled` and `broadcast` join the ambient transaction; nothing else does. Whatever cannot
    be done now raises `QueueUnavailable`. `now` is the queue's time, in seconds since the epoch.
    """

    @property
    def clock(self) -> Clock:
        """What every due time is by."""
        ...

    @property
    def interruptions(self) -> int:
        """How often, so far, changes made by others may have gone unseen."""
        ...

    async def open(self) -> None:
        """Connect, and check that the tables are there."""
        ...

    async def close(self) -> None:
        """Finish what was asked for, and disconnect."""
        ...

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` whenever anything may have changed, until `unwatch`."""
        ...

    def unwatch(self, event: asyncio.Event) -> None:
        """Leave `event` alone from now on."""
        ...

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        """As `MessageQueue.publish`."""
        ...

    async def cancel(self, message_id: str, now: float) -> bool:
        """As `MessageQueue.cancel`."""
        ...

    async def scheduled(self, message_id: str, now: float) -> bool:
        """As `MessageQueue.scheduled`."""
        ...

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        """As `MessageQueue.broadcast`."""
        ...

    async def last_broadcast(self) -> int:
        """Return the number of the last broadcast; a receiver that opens now sees those after it."""
        ...

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        """Return the frames after `number` of other origins, the last number seen, and whether any are missing."""
        ...

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        """Add what is missing; return when the registry changed for the last time."""
        ...

    async def registry(self) -> Registry:
        """As `MessageQueue.registry`."""
        ...

    async def join(self, info: WorkerInfo, now: float) -> Membership:
        """Register a live worker."""
        ...

    async def leave(self, member: Membership, keep: Collection[Claim], now: float) -> None:
        """Give back all but `keep`, and unregister the worker unless it keeps something."""
        ...

    async def next_due(self, names: Collection[str]) -> float | None:
        """Return when there may be something to claim for these names: cheap, and takes no lock."""
        ...

    async def claim(self, member: Membership, wants: Mapping[str, int], now: float) -> list[Claim]:
        """Claim what is due; `QueueClosed` if the worker is considered dead.

        What it claims although its caller was cancelled is released without the caller, at the latest by the next
        `next_due`, `claim`, `recover` or `leave`.
        """
        ...

    async def settle(self, member: Membership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        """As `Consumer.settle`."""
        ...

    async def isolate(self, member: Membership, claim: Claim) -> bool:
        """As `Consumer.isolate`."""
        ...

    async def recover(self, now: float) -> int:
        """As `Consumer.recover`."""
        ...

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        """As `Consumer.unpark`."""
        ...

    async def stats(self, now: float) -> list[SubscriptionStats]:
        """As `MessageQueue.stats`."""
        ...

    async def warnings(self) -> list[str]:
        """As `MessageQueue.warnings`."""
        ...

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        """As `MessageQueue.dead_letters`."""
        ...

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        """As `MessageQueue.dead_letter`."""
        ...

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        """As `MessageQueue.retry_dead`."""
        ...

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        """As `MessageQueue.discard_dead`."""
        ...

    async def set_paused(self, name: str, *, paused: bool) -> None:
        """As `MessageQueue.pause` and `resume`."""
        ...

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        """As `MessageQueue.unblock`."""
        ...

    async def retire(
        self, name: str, event: str | None, backlog: Literal["refuse", "discard", "dead"], now: float
    ) -> int:
        """As `MessageQueue.retire`."""
        ...


def queue_dialect_for(db: Database, clock: Clock, options: SqlOptions) -> QueueDialect:
    """Return the queue dialect for the kind of database that `db` is.

    Raises:
        QueueUnavailable: the queue does not support this kind of database.
    """
    dialects: dict[str, Callable[[], QueueDialect]] = {
        "sqlite": lambda: _sqlite(db, clock, options),
        "postgresql": lambda: _postgresql(db, clock, options),
    }
    name = db.dialect.name
    if name not in dialects:
        raise QueueUnavailable(f"mq.driver=sql works on {', '.join(dialects)}, not on {name}: change `db.url`")
    return dialects[name]()


def _sqlite(db: Database, clock: Clock, options: SqlOptions) -> QueueDialect:
    from infra.mq.drivers.sql.sqlite.dialect import SqliteQueueDialect

    return SqliteQueueDialect(db, clock, options)


def _postgresql(db: Database, clock: Clock, options: SqlOptions) -> QueueDialect:
    from infra.mq.drivers.sql.postgres.dialect import PostgresQueueDialect

    return PostgresQueueDialect(db, clock, options)
