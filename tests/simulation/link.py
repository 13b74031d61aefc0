"""A simulated driver that reaches its server over a network, which delays and loses requests and replies.

The server is a memory queue, and the driver keeps the contract of `infra.mq.queue`. A request is executed once or
never; its reply may be lost, and it may be executed after its caller has stopped waiting. If a worker does not receive
its claims, the server releases them, or the worker's lease is ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from infra.mq import (
    REGISTRY_TTL,
    BroadcastReceiver,
    Claim,
    ClaimLimits,
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
from infra.mq.types import BacklogPolicy, DeadLetter, SubscriptionStats
from tests.simulation.answer import Answer
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.server import DeclaredEvent, Server, declared_events_of

_T = TypeVar("_T")

MARGIN = 1.2
"""The server's lease, in lengths of the worker's: clocks differ, and handlers need time to end."""


@dataclass(slots=True)
class NetworkConditions:
    """The present state of the network for one process; rates are per request."""

    down: bool = False
    dropped: float = 0.0
    """Rate of requests that never reach the server."""

    lost: float = 0.0
    """Rate of requests that are executed, perhaps late, but whose reply never arrives."""

    latency: float = 0.003
    """Maximum seconds of one direction."""

    timeout: float = 0.5
    """Maximum seconds for which a caller waits for a reply."""


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
        """The lease in seconds, as the worker knows it; the server's is `MARGIN` times as long."""

        self.dedupe_window = dedupe_window
        """Seconds for which the server remembers an id."""

        self.conditions = NetworkConditions()
        self.cut_off: Callable[[], None] = lambda: None
        """Called when a live process may have lost its claims."""

        self.declared_events: set[DeclaredEvent] = set()
        """The events that this process declared last."""

        self.declared_in = -1
        """The server's era of that declaration."""

        self.failed_at = float("-inf")
        """The loop's time of the last failed request."""

        self._process = process
        self._server = server
        self._loop = loop
        self._durable = durable
        self._closed = False

    @property
    def features(self) -> Features:
        return replace(self._server.queue.features, durable=self._durable, multi_process=True)

    async def open(self) -> None:
        await self.request(_nothing)

    async def close(self) -> None:
        self._closed = True  # requests in flight are still answered; open consumers lose their lease

    @property
    def era(self) -> int:
        """The number of times that the server has lost all data."""
        return self._server.era

    def time(self) -> float:
        return self._server.queue.time()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        known_since = await self.request(lambda: self._server.declare(subscriptions, broadcasts))
        self.declared_events, self.declared_in = declared_events_of(subscriptions, broadcasts), self._server.era
        # After this time every subscription cache is newer than the declaration.
        await asyncio.sleep(max(0.0, known_since + REGISTRY_TTL - self._loop.time()))

    async def registry(self) -> Registry:
        kept = await self.request(self._server.registry)
        return Registry(routed=frozenset(kept.routed), broadcast=frozenset(kept.broadcast))

    async def publish(self, messages: Sequence[Message]) -> None:
        await self.request(lambda: self._server.queue.publish(messages), lost=QueueIndeterminate)

    async def cancel(self, message_id: str) -> bool:
        return await self.request(lambda: self._server.queue.cancel(message_id), lost=QueueIndeterminate)

    async def scheduled(self, message_id: str) -> bool:
        return await self.request(lambda: self._server.queue.scheduled(message_id))

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        await self.request(lambda: self._server.queue.broadcast(frames, origin=origin))

    async def receiver(self, *, origin: str) -> BroadcastReceiver:
        inner = await self.request(lambda: self._server.queue.receiver(origin=origin))
        return LinkedReceiver(inner, self, self._server, origin)

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        inner = await self.request(lambda: self._server.queue.consumer(info, limits))
        return LinkedConsumer(inner, self, self._process)

    async def stats(self) -> list[SubscriptionStats]:
        return await self.request(self._server.stats)

    async def warnings(self) -> list[str]:
        return await self.request(self._server.warnings)

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        return await self.request(
            lambda: self._server.queue.dead_letters(subscription=subscription, event=event, limit=limit, after=after)
        )

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self.request(lambda: self._server.queue.dead_letter(dead_id))

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        return await self.request(lambda: self._server.queue.retry_dead(dead_ids))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self.request(lambda: self._server.queue.discard_dead(dead_ids))

    async def pause(self, name: str) -> None:
        await self.request(lambda: self._server.queue.pause(name))

    async def resume(self, name: str) -> None:
        await self.request(lambda: self._server.queue.resume(name))

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        await self.request(lambda: self._server.queue.unblock(name, ordering_key, skip=skip))

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        return await self.request(lambda: self._server.retire(name, event=event, backlog=backlog))

    async def request(
        self,
        call: Callable[[], Awaitable[_T]],
        *,
        lost: type[QueueUnavailable | QueueIndeterminate] = QueueUnavailable,
        undelivered: Callable[[_T], Awaitable[object]] | None = None,
    ) -> _T:
        """Send a request to the server, which executes `call`, and return the reply.

        `undelivered` is called by the server with the result of a request whose caller has stopped waiting.

        Raises:
            QueueUnavailable: the request was lost.
            QueueUnavailable | QueueIndeterminate: the reply was lost; `lost` is the class.
        """
        self._check()
        random, conditions = self._process.random, self.conditions
        draw = random.random()
        if conditions.down or draw < conditions.dropped:
            self.failed_at = self._loop.time()
            await asyncio.sleep(random.uniform(0, conditions.timeout))
            raise QueueUnavailable("simulated: the request was lost")
        answer = self._execute(call, random.uniform(0, conditions.latency), undelivered)
        if draw < conditions.dropped + conditions.lost:
            self.failed_at = self._loop.time()
            await self._give_up(answer, random.uniform(0, conditions.timeout))
            raise lost("simulated: the reply was lost")
        await self._wait(answer)
        self._check()
        return answer.take()

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed")

    async def _give_up(self, answer: "Answer[Any]", after: float) -> None:
        if self._process.random.random() < 0.5:
            answer.delay(self._process.random.uniform(0, 4 * self.conditions.timeout))
        try:
            await asyncio.sleep(after)
        finally:
            answer.abandon()

    async def _wait(self, answer: "Answer[Any]") -> None:
        try:
            await answer.done.wait()
            await asyncio.sleep(self._process.random.uniform(0, self.conditions.latency))
        except BaseException:
            answer.abandon()
            raise

    def _execute(
        self, call: Callable[[], Awaitable[_T]], after: float, undelivered: Callable[[_T], Awaitable[object]] | None
    ) -> "Answer[_T]":
        answer = Answer(call, after, undelivered, self._loop)
        self._loop.spawn(self._loop.environment, answer.execute())
        return answer


class LinkedConsumer:
    """The consumer of a `Link`; it learns from replies that its lease is lost, as a real consumer does."""

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
        pending = self._request(lambda: self._inner.fetch(wants, wait=wait), undelivered=self._release_undelivered)
        try:
            return await pending
        except (QueueUnavailable, asyncio.CancelledError):
            self._inner.wake()  # ends the wait on the server
            raise

    def wake(self) -> None:
        self._inner.wake()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        fenced = await self._request(lambda: self._inner.settle(settlements))
        if fenced and self._inner.lost:
            self._lose()
        return fenced

    async def isolate(self, claim: Claim) -> bool:
        return await self._request(lambda: self._inner.isolate(claim))

    async def recover(self) -> int:
        return await self._request(self._inner.recover)

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        return await self._request(lambda: self._inner.unpark(known))

    def renew(self) -> bool:
        conditions = self._link.conditions
        if conditions.down or self._process.random.random() < conditions.dropped + conditions.lost:
            raise QueueUnavailable("simulated: the renewal was lost")
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
        await self._link.request(self._inner.close)

    def keep(self, claim: Claim) -> None:
        self._inner.keep(claim)
        # The memory queue keeps the claim until it is closed; here the worker's process may end before.
        self._process.on_kill.append(self._inner.abandon)

    async def _request(
        self, call: Callable[[], Awaitable[_T]], *, undelivered: Callable[[_T], Awaitable[object]] | None = None
    ) -> _T:
        if self._lost or self._closed:
            raise QueueClosed("simulated: this consumer was closed, or has lost its lease")
        try:
            return await self._link.request(call, undelivered=undelivered)
        except QueueClosed:
            self._lose()
            raise

    async def _release_undelivered(self, claims: list[Claim]) -> None:
        if not claims:
            return
        if self._process.random.random() < 0.5:
            self._lose()  # the lease is not renewed any more; handlers must end before it expires
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
    """The broadcast receiver of a `Link`, which is opened again after the server has lost its data."""

    def __init__(self, inner: BroadcastReceiver, link: Link, server: Server, origin: str) -> None:
        self._inner = inner
        self._link = link
        self._server = server
        self._era = server.era
        self._origin = origin
        self._gap = False

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        try:
            frames, gap = await self._link.request(lambda: self._receive(wait))
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
    """Answer a request that only checks whether the server is reachable."""
