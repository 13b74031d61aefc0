"""The SQL driver's `MessageQueue`."""

from collections.abc import Collection, Sequence
from typing import Literal

from infra.clock import Clock
from infra.db import Database
from infra.mq.bodies import refuse_larger
from infra.mq.declaring import DeclareWait
from infra.mq.defaults import BROADCAST_KEPT, DEDUPE_WINDOW, LEASE
from infra.mq.drivers.sql.broadcast import SqlBroadcasts
from infra.mq.drivers.sql.consumer import SqlConsumer
from infra.mq.drivers.sql.dialect import QueueDialect, SqlOptions
from infra.mq.errors import QueueUnavailable
from infra.mq.limits import MAX_BODY
from infra.mq.owner import QueueOwner
from infra.mq.queue import REGISTRY_TTL
from infra.mq.receiver import SourceReceiver
from infra.mq.types import (
    BacklogPolicy,
    ClaimLimits,
    DeadLetter,
    Features,
    Message,
    Registry,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

_LONGEST_COMMIT = 30.0
"""The longest time, in seconds, from the timestamp of a declaration until its COMMIT is visible."""


class SqlQueue:
    """A full `MessageQueue` in the application's database, which must be open and migrated before `open()`.

    Args:
        db: The database of the queue; `publish`, `cancel`, `scheduled` and `broadcast` join its ambient transaction.
        clock: The clock of all due times and waits; the database is polled by real time.
        dedupe_window: Seconds for which the ids of messages with `dedupe` are stored.
        broadcast_kept: Seconds for which broadcasts are stored for processes that poll late.
        longest_silence: Seconds without a poll of the database after which receivers report a gap.
        patience: Seconds that a write waits for other writers.
        registry_ttl: Seconds for which publishers may rely on their subscription cache.
        lease: PostgreSQL: seconds without a renewal after which a worker is considered dead.
        synchronous: SQLite: with "FULL" a commit survives a power cut, with "NORMAL" only the end of the process.
        max_body: The largest size of a message's body, in bytes.

    Raises:
        QueueUnavailable: the driver does not support this kind of database.
    """

    def __init__(
        self,
        db: Database,
        *,
        clock: Clock,
        dedupe_window: float = DEDUPE_WINDOW,
        broadcast_kept: float = BROADCAST_KEPT,
        longest_silence: float = 5.0,
        patience: float = 10.0,
        registry_ttl: float = REGISTRY_TTL,
        lease: float = LEASE,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        max_body: int = MAX_BODY,
    ) -> None:
        options = SqlOptions(
            dedupe_window=dedupe_window,
            broadcast_kept=broadcast_kept,
            longest_silence=longest_silence,
            patience=patience,
            lease=lease,
            synchronous=synchronous,
        )
        self._dialect: QueueDialect = _dialect_for(db, clock, options)
        self._commands = self._dialect.commands
        self._clock = self._dialect.clock
        self._declare_wait = DeclareWait(self._clock, self._clock.time, registry_ttl, longest_commit=_LONGEST_COMMIT)
        self._consumers: set[SqlConsumer] = set()
        self._receivers: set[SourceReceiver] = set()
        self._owner = QueueOwner()
        self._max_body = max_body

    @property
    def features(self) -> Features:
        return Features(durable=True, multi_process=True, transactional=True, max_body=self._max_body)

    async def open(self) -> None:
        if not self._owner.is_here():
            await self._dialect.open()
            self._owner.enter()

    async def close(self) -> None:
        if not self._owner.is_here():
            return
        self._owner.leave()
        for consumer in list(self._consumers):
            consumer.abandon()
            consumer.wake()
        for receiver in list(self._receivers):
            await receiver.close()
        await self._dialect.close()

    def time(self) -> float:
        return self._clock.time()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        self._owner.check()
        await self._declare_wait.after(await self._dialect.declare(subscriptions, broadcasts))

    async def registry(self) -> Registry:
        self._owner.check()
        return await self._dialect.registry()

    async def publish(self, messages: Sequence[Message]) -> None:
        self._owner.check()
        if messages:
            refuse_larger(messages, self._max_body)
            await self._dialect.publish(messages, self._clock.time())

    async def cancel(self, message_id: str) -> bool:
        self._owner.check()
        return await self._dialect.cancel(message_id, self._clock.time())

    async def scheduled(self, message_id: str) -> bool:
        self._owner.check()
        return await self._dialect.scheduled(message_id, self._clock.time())

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._owner.check()
        if frames:
            await self._dialect.broadcast(frames, origin, self._clock.time())

    async def receiver(self, *, origin: str) -> SourceReceiver:
        self._owner.check()
        source = SqlBroadcasts(self._dialect, origin, await self._dialect.last_broadcast())
        receiver = SourceReceiver(source, self._clock, self._owner, self._receivers.discard)
        self._receivers.add(receiver)
        return receiver

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> SqlConsumer:
        self._owner.check()
        member = await self._dialect.workers.join(info, self._clock.time())
        consumer = SqlConsumer(self._dialect, self._clock, info, limits, member, self._owner, self._consumers.discard)
        self._consumers.add(consumer)
        return consumer

    async def stats(self) -> list[SubscriptionStats]:
        self._owner.check()
        return await self._commands.stats(self._clock.time())

    async def warnings(self) -> list[str]:
        self._owner.check()
        return await self._commands.warnings()

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        self._owner.check()
        return await self._commands.dead_letters(subscription, event, limit, after)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        self._owner.check()
        return await self._commands.dead_letter(dead_id)

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        self._owner.check()
        return await self._commands.retry_dead(dead_ids, self._clock.time())

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        self._owner.check()
        return await self._commands.discard_dead(dead_ids)

    async def pause(self, name: str) -> None:
        self._owner.check()
        await self._commands.set_paused(name, paused=True)

    async def resume(self, name: str) -> None:
        self._owner.check()
        await self._commands.set_paused(name, paused=False)

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        self._owner.check()
        await self._commands.unblock(name, ordering_key, self._clock.time(), skip=skip)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        self._owner.check()
        return await self._commands.retire(name, event, backlog, self._clock.time())


def _dialect_for(db: Database, clock: Clock, options: SqlOptions) -> QueueDialect:
    """Return the queue dialect for the kind of database that `db` is; only its modules are imported."""
    match db.dialect.name:
        case "sqlite":
            from infra.mq.drivers.sql.sqlite.dialect import SqliteQueueDialect

            return SqliteQueueDialect(db, clock, options)
        case "postgresql":
            from infra.mq.drivers.sql.postgres.dialect import PostgresQueueDialect

            return PostgresQueueDialect(db, clock, options)
        case name:
            raise QueueUnavailable(f"mq.driver=sql works on sqlite, postgresql, not on {name}: change `db.url`")
