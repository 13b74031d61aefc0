"""The Redis driver's `MessageQueue`."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec

from infra.clock import Clock
from infra.mq.declaring import DeclareWait
from infra.mq.defaults import DEDUPE_WINDOW, LEASE
from infra.mq.drivers.redis import dead
from infra.mq.drivers.redis.administration import retire, unblock
from infra.mq.drivers.redis.broadcast import RedisBroadcasts, broadcast, read_after
from infra.mq.drivers.redis.consumer import RedisConsumer
from infra.mq.drivers.redis.core import LARGEST_BODY, Core, RedisOptions
from infra.mq.drivers.redis.errors import Misconfigured
from infra.mq.drivers.redis.inspection import stats
from infra.mq.drivers.redis.keys import owner_name
from infra.mq.drivers.redis.lease import Lease
from infra.mq.drivers.redis.notifier import RedisNotifier
from infra.mq.drivers.redis.publisher import RedisPublisher
from infra.mq.drivers.redis.schedule import cancel, is_scheduled
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.server import check_server, largest_value, run_id
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import QueueRejected
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

_FEATURES = Features(durable=True, multi_process=True, transactional=False, max_body=LARGEST_BODY)


class RedisQueue:
    """A complete `MessageQueue` in Redis 7.0 or newer, or in Valkey; as durable as the server's configuration.

    Args:
        url: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, `rediss://…` with TLS, or `unix:///PATH`.
        clock: The clock of all waits and, with `broker_time=False`, of due times and leases.
        namespace: The prefix of all keys; queues of different namespaces on one server are independent.
        lease: Seconds without `renew` after which a worker's lease expires; a fifth of that later the worker is
            considered dead.
        dedupe_window: Seconds for which the ids of messages with `dedupe` are remembered.
        takeover_patience: Seconds for which a worker must have reached the server without a break before it takes over
            from workers whose lease has expired; by default `lease`. So a time in which no worker reached the server
            makes none of them count as dead.
        broker_time: Use the server's clock for due times and leases. False is for tests, which move `clock`.
        timeout: Seconds that an answer may take.
        connect_timeout: Seconds that connecting may take.
        poll: Seconds after which a waiting `fetch` polls, in case a notification was lost.
        max_body: The largest body of a message, in bytes; by default, and at most, what the server accepts.
        registry_ttl: Seconds for which publishers may use their subscription caches.

    Raises:
        QueueUnavailable: `url` is not the URL of a Redis server.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        namespace: str = "beneath",
        lease: float = LEASE,
        dedupe_window: float = DEDUPE_WINDOW,
        takeover_patience: float | None = None,
        broker_time: bool = True,
        timeout: float = 5.0,
        connect_timeout: float = 5.0,
        poll: float = 1.0,
        max_body: int | None = None,
        registry_ttl: float = REGISTRY_TTL,
    ) -> None:
        options = RedisOptions(
            lease=lease,
            dedupe_window=dedupe_window,
            takeover_patience=takeover_patience,
            broker_time=broker_time,
            timeout=timeout,
            connect_timeout=connect_timeout,
            poll=poll,
            max_body=max_body,
        )
        self._core = Core(url, clock, namespace, options)
        self._declare_wait = DeclareWait(clock, self._core.time, registry_ttl)
        self._publisher = RedisPublisher(self._core)
        self._notifier: RedisNotifier | None = None
        self._consumers: set[RedisConsumer] = set()
        self._receivers: set[SourceReceiver] = set()

    @property
    def features(self) -> Features:
        return replace(_FEATURES, max_body=self._core.max_body)

    async def open(self) -> None:
        core = self._core
        if core.is_open:
            return
        core.owner.enter()
        try:
            link = core.link("admin")
            await link.connect()
            await check_server(link, core.keys)
            core.run_id = await run_id(link)
            core.limit_bodies(await largest_value(link))
            await core.measure(link)
            await core.registry.load()
        except Misconfigured as error:
            await self.close()
            raise QueueRejected(str(error)) from error
        except BaseException:
            await self.close()
            raise
        self._notifier = RedisNotifier(core)

    async def close(self) -> None:
        core = self._core
        if not core.is_open:
            return
        await asyncio.gather(*(it.shut() for it in list(self._consumers)))
        core.owner.leave()
        self._publisher.close()
        for receiver in list(self._receivers):
            await receiver.close()
        if self._notifier is not None:
            await self._notifier.close()
            self._notifier = None
        links, core.links = core.links, {}
        for link in links.values():
            await link.close()

    def time(self) -> float:
        return self._core.time()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        core = self._core
        core.owner.check()
        await core.registry.declare(subscriptions, broadcasts)
        await self._declare_wait.after(core.registry.changed_at)

    async def registry(self) -> Registry:
        self._core.owner.check()
        return (await self._core.registry.load()).registry

    async def publish(self, messages: Sequence[Message]) -> None:
        self._core.owner.check()
        if messages:
            await self._publisher.publish(messages)

    async def cancel(self, message_id: str) -> bool:
        self._core.owner.check()
        return await cancel(self._core, message_id)

    async def scheduled(self, message_id: str) -> bool:
        self._core.owner.check()
        return await is_scheduled(self._core, message_id)

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._core.owner.check()
        if frames:
            await broadcast(self._core, frames, origin)

    async def receiver(self, *, origin: str) -> SourceReceiver:
        notifier = await self._started_notifier()
        last, _, _ = await read_after(self._core, b"")
        source = RedisBroadcasts(self._core, notifier, origin, last)
        receiver = SourceReceiver(source, self._core.clock, self._core.owner, self._receivers.discard)
        self._receivers.add(receiver)
        return receiver

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> RedisConsumer:
        core = self._core
        notifier = await self._started_notifier()
        joined, lease, name = core.clock.monotonic(), core.options.lease, owner_name(info.id)
        held = Lease(core, name, joined=joined)
        consumer = RedisConsumer(core, notifier, info, limits, held, self._consumers.discard)
        registration = msgspec.msgpack.encode(
            [sorted(info.subscriptions), info.host, info.pid, lease, consumer.waiter_id]
        )
        keys = [core.keys.of(it) for it in ("leases", "workers", "meta", "since")]
        try:
            await core.link("admin").run_repeatable(
                scripts().join, keys, core.now(), name, microseconds(lease), registration
            )
        except BaseException:
            notifier.unregister(consumer.waiter_id)
            raise
        self._consumers.add(consumer)
        return consumer

    async def stats(self) -> list[SubscriptionStats]:
        self._core.owner.check()
        return await stats(self._core)

    async def warnings(self) -> list[str]:
        self._core.owner.check()
        return []

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        self._core.owner.check()
        return await dead.dead_letters(self._core, subscription, event, limit, after)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        self._core.owner.check()
        return await dead.dead_letter(self._core, dead_id)

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        self._core.owner.check()
        return await dead.retry_dead(self._core, dead_ids)

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        self._core.owner.check()
        return await dead.discard_dead(self._core, dead_ids)

    async def pause(self, name: str) -> None:
        self._core.owner.check()
        await self._core.registry.set_paused(name, paused=True)

    async def resume(self, name: str) -> None:
        self._core.owner.check()
        await self._core.registry.set_paused(name, paused=False)

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        self._core.owner.check()
        await unblock(self._core, name, ordering_key, skip=skip)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        self._core.owner.check()
        return await retire(self._core, name, event, backlog)

    async def _started_notifier(self) -> RedisNotifier:
        self._core.owner.check()
        assert self._notifier is not None  # noqa: S101 - set while the queue is open
        await self._notifier.start()
        return self._notifier
