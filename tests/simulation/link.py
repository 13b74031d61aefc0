"""A process's way to the queue, with everything that a network does: it delays, drops, loses answers and is late.

It stands for a driver whose server is elsewhere: the memory queue behind it is the server, and what the bus sees keeps
the contract of `infra.mq.queue`. A request is executed once or never; its answer may be lost, and it may be executed
after its caller gave up. Claims that nobody was told of are released by the server, or their worker's lease is ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from infra.mq import (
    REGISTRY_TTL,
    BroadcastReceiver,
    Claim,
    Consumer,
    Features,
    Message,
    Outcome,
    QueueClosed,
    QueueIndeterminate,
    QueueUnavailable,
    Registry,
    Settlement,
    Subscription,
    WorkerInfo,
)
from infra.mq.types import DeadLetter, SubscriptionStats
from tests.simulation.answer import Answer
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.server import Fact, Server, facts_of

_T = TypeVar("_T")

MARGIN = 1.2
"""The server ends a lease after so many times what a worker knows of: clocks differ, and handlers need time to end."""


@dataclass(slots=True)
class Weather:
    """How the network treats one process now. The rates are per request."""

    down: bool = False
    dropped: float = 0.0
    """Never reaches the server."""

    lost: float = 0.0
    """Executed, perhaps late; the answer never arrives."""

    latency: float = 0.003
    """Seconds one way, at most."""

    patience: float = 0.5
    """Seconds after which a caller gives up waiting for an answer, at most."""


class Link:
    """A `MessageQueue` for one process."""

    def __init__(
        self,
        process: Process,
        server: Server,
        loop: SimulatedLoop,
        *,
        lease: float,
        dedupe_window: float,
        durable: bool,
    ) -> None:
        self.lease = lease
        """What a worker knows of its lease, in seconds; the server's is `MARGIN` times as long."""

        self.dedupe_window = dedupe_window
        """Seconds for which the server remembers an id."""

        self.weather = Weather()
        self.cut_off: Callable[[], None] = lambda: None
        """Called when the process may have lost what it holds, without having died."""

        self.facts: set[Fact] = set()
        """What this process declared."""

        self.declared_in = -1
        """The server's era in which it last did so."""

        self.failed_at = float("-inf")
        """When a request last failed, by the loop's time."""

        self._process = process
        self._server = server
        self._loop = loop
        self._durable = durable
        self._closed = False

    @property
    def features(self) -> Features:
        return replace(self._server.queue.features, durable=self._durable, multi_process=True)

    async def open(self) -> None:
        await self.ask(_nothing)

    async def close(self) -> None:
        self._closed = True  # what is asked for by now is answered; consumers still open are as good as dead

    @property
    def era(self) -> int:
        """How often the server has forgotten everything."""
        return self._server.era

    def time(self) -> float:
        return self._server.queue.time()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        known_since = await self.ask(lambda: self._server.declare(subscriptions, broadcasts))
        self.facts, self.declared_in = facts_of(subscriptions, broadcasts), self._server.era
        # From then on no publisher has a copy of the registry from before.
        await asyncio.sleep(max(0.0, known_since + REGISTRY_TTL - self._loop.time()))

    async def registry(self) -> Registry:
        kept = await self.ask(self._server.registry)
        return Registry(routed=frozenset(kept.routed), broadcast=frozenset(kept.broadcast))

    async def publish(self, messages: Sequence[Message]) -> None:
        await self.ask(lambda: self._server.queue.publish(messages), lost=QueueIndeterminate)

    async def cancel(self, message_id: str) -> bool:
        return await self.ask(lambda: self._server.queue.cancel(message_id), lost=QueueIndeterminate)

    async def scheduled(self, message_id: str) -> bool:
        return await self.ask(lambda: self._server.queue.scheduled(message_id))

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        await self.ask(lambda: self._server.queue.broadcast(frames, origin=origin))

    async def receiver(self, *, origin: str) -> BroadcastReceiver:
        inner = await self.ask(lambda: self._server.queue.receiver(origin=origin))
        return LinkedReceiver(inner, self, self._server, origin)

    async def consumer(self, info: WorkerInfo) -> Consumer:
        inner = await self.ask(lambda: self._server.queue.consumer(info))
        return LinkedConsumer(inner, self, self._process)

    async def stats(self) -> list[SubscriptionStats]:
        return await self.ask(self._server.stats)

    async def warnings(self) -> list[str]:
        return await self.ask(self._server.warnings)

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        return await self.ask(
            lambda: self._server.queue.dead_letters(subscription=subscription, event=event, limit=limit, after=after)
        )

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self.ask(lambda: self._server.queue.dead_letter(dead_id))

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        return await self.ask(lambda: self._server.queue.retry_dead(dead_ids))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self.ask(lambda: self._server.queue.discard_dead(dead_ids))

    async def pause(self, name: str) -> None:
        await self.ask(lambda: self._server.queue.pause(name))

    async def resume(self, name: str) -> None:
        await self.ask(lambda: self._server.queue.resume(name))

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        await self.ask(lambda: self._server.queue.unblock(name, ordering_key, skip=skip))

    async def retire(
        self, name: str, *, event: str | None = None, backlog: Literal["refuse", "discard", "dead"] = "refuse"
    ) -> int:
        return await self.ask(lambda: self._server.retire(name, event=event, backlog=backlog))

    async def ask(
        self,
        call: Callable[[], Awaitable[_T]],
        *,
        lost: type[QueueUnavailable | QueueIndeterminate] = QueueUnavailable,
        unheard: Callable[[_T], Awaitable[object]] | None = None,
    ) -> _T:
        """Have the server execute `call`, or not, and return its answer, or not.

        `unheard` is what the server does with an answer that nobody took.
        """
        self._check()
        random, weather = self._process.random, self.weather
        fate = random.random()
        if weather.down or fate < weather.dropped:
            self.failed_at = self._loop.time()
            await asyncio.sleep(random.uniform(0, weather.patience))
            raise QueueUnavailable("simulated: the request was lost on its way")
        answer = self._execute(call, random.uniform(0, weather.latency), unheard)
        if fate < weather.dropped + weather.lost:
            self.failed_at = self._loop.time()
            await self._give_up(answer, random.uniform(0, weather.patience))
            raise lost("simulated: the answer was lost on its way")
        await self._wait(answer)
        self._check()
        return answer.take()

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed")

    async def _give_up(self, answer: "Answer[Any]", after: float) -> None:
        if self._process.random.random() < 0.5:
            answer.delay(self._process.random.uniform(0, 4 * self.weather.patience))
        try:
            await asyncio.sleep(after)
        finally:
            answer.abandon()

    async def _wait(self, answer: "Answer[Any]") -> None:
        try:
            await answer.done.wait()
            await asyncio.sleep(self._process.random.uniform(0, self.weather.latency))
        except BaseException:
            answer.abandon()
            raise

    def _execute(
        self, call: Callable[[], Awaitable[_T]], after: float, unheard: Callable[[_T], Awaitable[object]] | None
    ) -> "Answer[_T]":
        answer = Answer(call, after, unheard, self._loop)
        self._loop.spawn(self._loop.world, answer.execute())
        return answer


class LinkedConsumer:
    """A `Consumer` of a `Link`. It learns that its lease is lost as a real one does: by being told."""

    def __init__(self, inner: Consumer, link: Link, process: Process) -> None:
        self._inner = inner
        self._link = link
        self._process = process
        self._lost = False
        self._closed = False

    @property
    def info(self) -> WorkerInfo:
        return self._inner.info

    @property
    def valid_until(self) -> float:
        lease = self._link.lease
        return self._inner.valid_until - (MARGIN - 1) * lease + self._process.monotonic_offset

    @property
    def lost(self) -> bool:
        return self._lost

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        asked = self._ask(lambda: self._inner.fetch(wants, wait=wait), unheard=self._unheard)
        try:
            return await asked
        except (QueueUnavailable, asyncio.CancelledError):
            self._inner.wake()  # the server notices that nobody waits any more
            raise

    def wake(self) -> None:
        self._inner.wake()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        fenced = await self._ask(lambda: self._inner.settle(settlements))
        if fenced and self._inner.lost:
            self._lose()
        return fenced

    async def isolate(self, claim: Claim) -> bool:
        return await self._ask(lambda: self._inner.isolate(claim))

    async def recover(self) -> int:
        return await self._ask(self._inner.recover)

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        return await self._ask(lambda: self._inner.unpark(known))

    def renew(self) -> bool:
        weather = self._link.weather
        if weather.down or self._process.random.random() < weather.dropped + weather.lost:
            raise QueueUnavailable("simulated: the renewal was lost on its way")
        if self._lost or not self._inner.renew():
            self._lose()
        return not self._lost

    def abandon(self) -> None:
        self._inner.abandon()
        self._lose()

    async def close(self) -> None:
        if self._lost or self._closed:
            return
        self._closed = True
        await self._link.ask(self._inner.close)

    def keep(self, claim: Claim) -> None:
        self._inner.keep(claim)
        # The memory queue takes such a worker for alive as long as itself; here its process may end before.
        self._process.on_kill.append(self._inner.abandon)

    async def _ask(
        self, call: Callable[[], Awaitable[_T]], *, unheard: Callable[[_T], Awaitable[object]] | None = None
    ) -> _T:
        if self._lost or self._closed:
            raise QueueClosed("simulated: this consumer was closed, or has lost its lease")
        try:
            return await self._link.ask(call, unheard=unheard)
        except QueueClosed:
            self._lose()
            raise

    async def _unheard(self, claims: list[Claim]) -> None:
        if not claims:
            return
        if self._process.random.random() < 0.5:
            self._lose()  # nothing renews it from now on; what runs here has until it runs out to end
            return
        await self._inner.settle(
            [
                Settlement(claim=each, delivery=each.deliveries[0], outcome=Outcome.RELEASE, close=each.ordered)
                for each in claims
            ]
        )

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._link.cut_off()


class LinkedReceiver:
    """A `BroadcastReceiver` of a `Link`, which begins anew when the server has forgotten it."""

    def __init__(self, inner: BroadcastReceiver, link: Link, server: Server, origin: str) -> None:
        self._inner = inner
        self._link = link
        self._server = server
        self._era = server.era
        self._origin = origin
        self._gap = False

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        try:
            frames, gap = await self._link.ask(lambda: self._receive(wait))
        except QueueUnavailable:
            self._gap = True
            raise
        gap, self._gap = gap or self._gap, False
        return frames, gap

    def wake(self) -> None:
        self._inner.wake()

    async def close(self) -> None:
        await self._inner.close()

    async def _receive(self, wait: float) -> tuple[list[bytes], bool]:
        if self._era == self._server.era:
            try:
                return await self._inner.receive(wait)
            except QueueClosed:
                if self._era == self._server.era:
                    raise
        self._era = self._server.era
        self._inner = await self._server.queue.receiver(origin=self._origin)
        return [], True


async def _nothing() -> None:
    """Be reached."""
