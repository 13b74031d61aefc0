"""The Redis driver's `MessageQueue`."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import msgspec

from infra.clock import Clock
from infra.mq.drivers.redis.administration import retire, unblock
from infra.mq.drivers.redis.bells import Bells
from infra.mq.drivers.redis.broadcast import RedisReceiver, broadcast, read_after
from infra.mq.drivers.redis.consumer import RedisConsumer
from infra.mq.drivers.redis.core import LARGEST_BODY, Core, Options
from infra.mq.drivers.redis.dead import discard, letter, letters, retry
from infra.mq.drivers.redis.errors import Misconfigured
from infra.mq.drivers.redis.inspection import stats
from infra.mq.drivers.redis.keys import owner_name
from infra.mq.drivers.redis.lease import Lease
from infra.mq.drivers.redis.publisher import Publisher
from infra.mq.drivers.redis.schedule import withdraw
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.server import incarnation, inspect, largest_value
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import QueueRejected
from infra.mq.queue import REGISTRY_TTL
from infra.mq.types import DeadLetter, Features, Message, Registry, Subscription, SubscriptionStats, WorkerInfo

_FEATURES = Features(durable=True, multi_process=True, transactional=False, max_body=LARGEST_BODY)


class RedisQueue:
    """A full `MessageQueue` in Redis 7.0 or newer, or in Valkey; as durable as that server is set up to be.

    Args:
        url: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, `rediss://…` with TLS, or `unix:///PATH`.
        clock: Every wait is by it; with `broker_time=False` every due time and lease too.
        namespace: What the names of all keys begin with; queues of different namespaces know nothing of each other.
        lease: After how many seconds without `renew` a worker may not count on what it owns; a fifth of that later it
            counts as dead.
        dedupe_window: For how many seconds the ids of messages with `dedupe` are remembered.
        takeover_patience: For how many seconds a worker must have reached the server without a break before it takes
            over from workers whose lease ran out; without it `lease`, so that nobody is taken for dead who only could
            not reach the server either.
        broker_time: Whether times are the server's. False is for tests, which move `clock`.
        timeout: How many seconds an answer may take.
        connect_timeout: How many seconds it may take to connect.
        poll: How many seconds a waiting `fetch` lets pass without looking, in case a wake-up call got lost.
        max_body: How large a message's body may be, in bytes; by default what the server takes, which is the most.
        registry_ttl: For how many seconds publishers may trust their copy of the registry.

    Raises:
        QueueUnavailable: `url` is none of a Redis server.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        namespace: str = "beneath",
        lease: float = 10.0,
        dedupe_window: float = 120.0,
        takeover_patience: float | None = None,
        broker_time: bool = True,
        timeout: float = 5.0,
        connect_timeout: float = 5.0,
        poll: float = 1.0,
        max_body: int | None = None,
        registry_ttl: float = REGISTRY_TTL,
    ) -> None:
        options = Options(
            lease=lease,
            dedupe_window=dedupe_window,
            takeover_patience=takeover_patience,
            broker_time=broker_time,
            timeout=timeout,
            connect_timeout=connect_timeout,
            poll=poll,
            max_body=max_body,
            registry_ttl=registry_ttl,
        )
        self._core = Core(url, clock, namespace, options)
        self._publisher = Publisher(self._core)
        self._bells: Bells | None = None
        self._consumers: set[RedisConsumer] = set()
        self._receivers: set[RedisReceiver] = set()

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
            await inspect(link, core.keys)
            core.incarnation = await incarnation(link)
            core.limit_bodies(await largest_value(link))
            await core.measure(link)
            await core.catalog.load()
        except Misconfigured as error:
            await self.close()
            raise QueueRejected(str(error)) from error
        except BaseException:
            await self.close()
            raise
        self._bells = Bells(core)

    async def close(self) -> None:
        core = self._core
        if not core.is_open:
            return
        await asyncio.gather(*(it.shut() for it in list(self._consumers)))
        core.owner.leave()
        self._publisher.close()
        for receiver in list(self._receivers):
            await receiver.close()
        if self._bells is not None:
            await self._bells.close()
            self._bells = None
        links, core.links = core.links, {}
        for link in links.values():
            await link.close()

    def time(self) -> float:
        return self._core.time()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        core = self._core
        core.check()
        await core.catalog.declare(subscriptions, broadcasts)
        # Whoever declared it: until then a publisher may still go by a copy of the registry from before.
        longest = core.options.registry_ttl
        outdated = core.catalog.changed_at + longest - core.time()
        if longest > 0 and outdated > 0:
            await core.clock.sleep(min(outdated, longest))

    async def registry(self) -> Registry:
        self._core.check()
        return (await self._core.catalog.load()).registry

    async def publish(self, messages: Sequence[Message]) -> None:
        self._core.check()
        if messages:
            await self._publisher.publish(messages)

    async def cancel(self, message_id: str) -> bool:
        self._core.check()
        return await withdraw(self._core, message_id, do=True)

    async def scheduled(self, message_id: str) -> bool:
        self._core.check()
        return await withdraw(self._core, message_id, do=False)

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._core.check()
        if frames:
            await broadcast(self._core, frames, origin)

    async def receiver(self, *, origin: str) -> RedisReceiver:
        bells = await self._listening()
        last, _, _ = await read_after(self._core, b"")
        receiver = RedisReceiver(self._core, bells, origin, last, self._receivers.discard)
        self._receivers.add(receiver)
        return receiver

    async def consumer(self, info: WorkerInfo) -> RedisConsumer:
        core = self._core
        bells = await self._listening()
        joined, lease, name = core.clock.monotonic(), core.options.lease, owner_name(info.id)
        consumer = RedisConsumer(core, bells, info, Lease(core, name, joined=joined), self._consumers.discard)
        who = msgspec.msgpack.encode([sorted(info.subscriptions), info.host, info.pid, lease, consumer.bell])
        keys = [core.keys.of(it) for it in ("leases", "workers", "meta", "since")]
        try:
            await core.link("admin").safely(scripts().join, keys, core.now(), name, microseconds(lease), who)
        except BaseException:
            bells.forget(consumer.bell)
            raise
        self._consumers.add(consumer)
        return consumer

    async def stats(self) -> list[SubscriptionStats]:
        self._core.check()
        return await stats(self._core)

    async def warnings(self) -> list[str]:
        self._core.check()
        return []

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        self._core.check()
        return await letters(self._core, subscription, event, limit, after)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        self._core.check()
        return await letter(self._core, dead_id)

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        self._core.check()
        return await retry(self._core, dead_ids)

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        self._core.check()
        return await discard(self._core, dead_ids)

    async def pause(self, name: str) -> None:
        self._core.check()
        await self._core.catalog.set_paused(name, paused=True)

    async def resume(self, name: str) -> None:
        self._core.check()
        await self._core.catalog.set_paused(name, paused=False)

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        self._core.check()
        await unblock(self._core, name, ordering_key, skip=skip)

    async def retire(
        self, name: str, *, event: str | None = None, backlog: Literal["refuse", "discard", "dead"] = "refuse"
    ) -> int:
        self._core.check()
        return await retire(self._core, name, event, backlog)

    async def _listening(self) -> Bells:
        self._core.check()
        assert self._bells is not None  # noqa: S101 - an open queue has it
        await self._bells.start()
        return self._bells
