"""The SQL driver's `MessageQueue`."""

from collections.abc import Collection, Sequence
from typing import Literal

from infra.clock import Clock
from infra.db import Database
from infra.mq.bodies import refuse_larger
from infra.mq.drivers.sql.broadcast import SqlReceiver
from infra.mq.drivers.sql.consumer import SqlConsumer
from infra.mq.drivers.sql.dialect import QueueDialect, SqlOptions, queue_dialect_for
from infra.mq.errors import QueueClosed
from infra.mq.limits import MAX_BODY
from infra.mq.queue import REGISTRY_TTL
from infra.mq.types import (
    BacklogPolicy,
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
"""How long, in seconds, a declaration may have taken from its timestamp until others saw its COMMIT."""


class SqlQueue:
    """A full `MessageQueue` in the application's database, which must be open and migrated before `open()`.

    Args:
        db: Where the queue lives; `publish`, `cancel`, `scheduled` and `broadcast` join its ambient transaction.
        clock: Every due time and wait is by it, but for the pace of looking at the database.
        dedupe_window: For how many seconds the ids of messages with `dedupe` are remembered.
        broadcast_kept: For how many seconds broadcasts are kept for processes that are late.
        longest_silence: After how many seconds without a look at the database a gap is reported to receivers.
        patience: How many seconds a write waits for other writers.
        registry_ttl: For how many seconds publishers may trust their copy of the registry.
        lease: PostgreSQL: after how many seconds without a sign of life a worker counts as dead.
        synchronous: SQLite: "FULL" survives a power cut, "NORMAL" only the end of the process.
        max_body: How large a message's body may be, in bytes.

    Raises:
        QueueUnavailable: the driver cannot work on this kind of database.
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
        self._dialect: QueueDialect = queue_dialect_for(db, clock, options)
        self._clock = self._dialect.clock
        self._registry_ttl = registry_ttl
        self._known_since = 0.0
        """When the declarations were changed that every publisher is known to have seen; by the queue's clock."""

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
        # Whoever declared it: others see it from the end of its COMMIT on, which may have been just now, and until the
        # TTL has passed from then on a publisher may go by a copy of the registry from before.
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

    async def consumer(self, info: WorkerInfo) -> SqlConsumer:
        self._check()
        member = await self._dialect.join(info, self._clock.time())
        consumer = SqlConsumer(self._dialect, self._clock, info, member, self._owner, self._consumers.discard)
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
