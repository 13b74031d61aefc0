"""The SQL driver's `MessageQueue`."""

from collections.abc import Collection, Sequence
from typing import Literal

from infra.clock import Clock
from infra.db import Database
from infra.mq.bodies import refuse_larger
from infra.mq.drivers.sql.broadcast import SqlReceiver
from infra.mq.drivers.sql.consumer import SqlConsumer
from infra.mq.drivers.sql.dialect import QueueDialect, SqlOptions
from infra.mq.errors import QueueClosed, QueueUnavailable
from infra.mq.limits import MAX_BODY
from infra.mq.queue import REGISTRY_TTL
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
from infra.ownership import LoopOwner

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
        dedupe_window: float = 120.0,
        broadcast_kept: float = 60.0,
        longest_silence: float = 5.0,
        patience: float = 10.0,
        registry_ttl: float = REGISTRY_TTL,
        lease: float = 10.0,
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
        self._clock = self._dialect.clock
        self._registry_ttl = registry_ttl
        self._known_since = 0.0
        """The time of the last registry change that all publishers are known to use; by the queue's clock."""

        self._consumers: set[SqlConsumer] = set()
        self._receivers: set[SqlReceiver] = set()
        self._owner = LoopOwner("the queue")
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
        self._check()
        changed_at = await self._dialect.declare(subscriptions, broadcasts)
        if changed_at == self._known_since or self._registry_ttl <= 0:
            return
        # Another process may have declared it. Its COMMIT may have ended just now, and for the TTL from then on a
        # publisher may use a subscription cache from before.
        if changed_at + _LONGEST_COMMIT + self._registry_ttl > self._clock.time():
            await self._clock.sleep(self._registry_ttl)
        self._known_since = changed_at

    async def registry(self) -> Registry:
        self._check()
        return await self._dialect.registry()

    async def publish(self, messages: Sequence[Message]) -> None:
        self._check()
        if messages:
            refuse_larger(messages, self._max_body)
            await self._dialect.publish(messages, self._clock.time())

    async def cancel(self, message_id: str) -> bool:
        self._check()
        return await self._dialect.cancel(message_id, self._clock.time())

    async def scheduled(self, message_id: str) -> bool:
        self._check()
        return await self._dialect.scheduled(message_id, self._clock.time())

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._check()
        if frames:
            await self._dialect.broadcast(frames, origin, self._clock.time())

    async def receiver(self, *, origin: str) -> SqlReceiver:
        self._check()
        last = await self._dialect.last_broadcast()
        receiver = SqlReceiver(self._dialect, self._clock, origin, last, self._receivers.discard)
        self._receivers.add(receiver)
        return receiver

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> SqlConsumer:
        self._check()
        member = await self._dialect.join(info, self._clock.time())
        consumer = SqlConsumer(self._dialect, self._clock, info, limits, member, self._owner, self._consumers.discard)
        self._consumers.add(consumer)
        return consumer

    async def stats(self) -> list[SubscriptionStats]:
        self._check()
        return await self._dialect.stats(self._clock.time())

    async def warnings(self) -> list[str]:
        self._check()
        return await self._dialect.warnings()

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        self._check()
        return await self._dialect.dead_letters(subscription, event, limit, after)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        self._check()
        return await self._dialect.dead_letter(dead_id)

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        self._check()
        return await self._dialect.retry_dead(dead_ids, self._clock.time())

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        self._check()
        return await self._dialect.discard_dead(dead_ids)

    async def pause(self, name: str) -> None:
        self._check()
        await self._dialect.set_paused(name, paused=True)

    async def resume(self, name: str) -> None:
        self._check()
        await self._dialect.set_paused(name, paused=False)

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        self._check()
        await self._dialect.unblock(name, ordering_key, self._clock.time(), skip=skip)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        self._check()
        return await self._dialect.retire(name, event, backlog, self._clock.time())

    def _check(self) -> None:
        if not self._owner.is_here():
            raise QueueClosed("the queue is not open")


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
