"""A queue on an unreliable network: answers are lost, requests are late or cancelled, and calls are repeated.

The wrapper is between the machine and any driver, and gives the machine the result of the repeated call, so that the
model still knows the exact state of the queue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

from infra.mq import (
    BacklogPolicy,
    Claim,
    ClaimLimits,
    Consumer,
    DeadLetter,
    MailboxNotBlocked,
    Message,
    MessageQueue,
    QueueError,
    QueueIndeterminate,
    QueueUnavailable,
    Settlement,
    Subscription,
    SubscriptionNotFound,
    SubscriptionStats,
    WorkerInfo,
)
from tests.contract.acting import ANSWER, until_done
from tests.contract.harness import Harness

T = TypeVar("T")

Fault = Literal["lose", "late", "cancel"]
"""A request takes effect without an answer, takes effect after its repetition, or is cancelled by its caller."""

ATTEMPTS = 50


class Network(Protocol):
    """The network state of one machine."""

    harness: Harness
    fault: Fault | None
    """The fault of the next request that is not a repetition."""

    patience: int
    """The iterations of the event loop after which a request is cancelled."""

    late: list[Callable[[], Awaitable[object]]]
    """Requests that arrive later."""


class Unknown:
    """The answer to a repeated request, whose first try may have taken effect; equals every value."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class ClaimsUnknown(Exception):
    """A fetch failed: its worker may own claims that the caller does not know."""


class UnsteadyQueue:
    """A wrapper of a `MessageQueue` that repeats failed calls; other attributes are the driver's."""

    def __init__(self, inner: MessageQueue, network: Network) -> None:
        self._inner = inner
        self._network = network

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the driver has
        return getattr(self._inner, name)

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        await self._ask(lambda: self._inner.declare(subscriptions, broadcasts), may_be_late=False)

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._ask(lambda: self._inner.publish(messages))

    async def cancel(self, message_id: str) -> bool:
        return await self._ask(lambda: self._inner.cancel(message_id), may_be_late=False)

    async def pause(self, name: str) -> None:
        await self._ask(lambda: self._inner.pause(name), may_be_late=False)

    async def resume(self, name: str) -> None:
        await self._ask(lambda: self._inner.resume(name), may_be_late=False)

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        await self._ask(lambda: self._inner.unblock(name, ordering_key, skip=skip), may_be_late=False)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        return await self._ask(lambda: self._inner.retire(name, event=event, backlog=backlog), may_be_late=False)

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._ask(lambda: self._inner.retry_dead(dead_ids), may_be_late=False)

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._ask(lambda: self._inner.discard_dead(dead_ids))

    async def stats(self) -> list[SubscriptionStats]:
        clock = self._network.harness.clock
        while True:
            asked_at = clock.time()
            answer = await ask(self._network, self._inner.stats, reading=True)
            if clock.time() == asked_at:
                return answer  # Otherwise the counts may belong to two different times.

    async def dead_letters(self, *, limit: int = 100) -> list[DeadLetter]:
        return await ask(self._network, lambda: self._inner.dead_letters(limit=limit), reading=True)

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        return cast("Consumer", UnsteadyConsumer(await self._inner.consumer(info, limits), self._network))

    async def _ask(self, call: Callable[[], Awaitable[T]], *, may_be_late: bool = True) -> T:
        return await ask(self._network, call, may_be_late=may_be_late)


class UnsteadyConsumer:
    """A wrapper of a `Consumer` that repeats failed calls; other attributes are the driver's."""

    def __init__(self, inner: Consumer, network: Network) -> None:
        self._inner = inner
        self._network = network

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the driver has
        return getattr(self._inner, name)

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        """Return claims.

        Raises:
            ClaimsUnknown: the caller does not know the claims.
        """
        network = self._network
        fault, network.fault = network.fault, None
        try:
            # Answers of fetch are lost on the wire only: here the driver would not notice the loss.
            return await attempt(network, lambda: self._inner.fetch(wants, wait=wait), fault)
        except (QueueUnavailable, asyncio.CancelledError) as error:
            raise ClaimsUnknown from error

    def renew(self) -> bool:
        """Renew the lease, with retries as the heartbeat makes them."""
        for _ in range(ATTEMPTS):
            try:
                return self._inner.renew()
            except QueueUnavailable:
                continue
        raise AssertionError(f"the lease could not be renewed in {ATTEMPTS} attempts")

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        return await self._ask(lambda: self._inner.settle(settlements))

    async def isolate(self, claim: Claim) -> bool:
        return await self._ask(lambda: self._inner.isolate(claim))

    async def recover(self) -> int:
        return await self._ask(self._inner.recover)

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        return await self._ask(lambda: self._inner.unpark(known), may_be_late=False)

    async def _ask(self, call: Callable[[], Awaitable[T]], *, may_be_late: bool = True) -> T:
        return await ask(self._network, call, may_be_late=may_be_late)


async def ask(
    network: Network, call: Callable[[], Awaitable[T]], *, may_be_late: bool = True, reading: bool = False
) -> T:
    """Repeat a request until it is answered; return `Unknown` if it was made more than once."""
    fault: Fault | None = None
    if not reading:
        fault, network.fault = network.fault, None
    if fault == "late" and may_be_late:
        network.late.append(call)
    if fault == "lose":
        await attempt(network, call, None)
    for tried in range(ATTEMPTS):
        try:
            answer = await attempt(network, call, None if tried else fault)
        except (QueueUnavailable, QueueIndeterminate, asyncio.CancelledError):
            continue
        except (SubscriptionNotFound, MailboxNotBlocked):
            if tried or fault == "lose":
                return cast("T", Unknown())  # The first request took effect.
            raise
        return cast("T", Unknown()) if (tried and not reading) or fault == "lose" else answer
    raise AssertionError(f"unanswered after {ATTEMPTS} attempts")


async def attempt(network: Network, call: Callable[[], Awaitable[T]], fault: Fault | None) -> T:
    """Make a request once while the clock advances; cancel it if the fault is `cancel`."""
    task = asyncio.ensure_future(call())
    if fault == "cancel":
        await network.harness.clock.settle(network.patience)
        task.cancel()
        await asyncio.sleep(0)
    return await until_done(network.harness, _result(task), step=0.25, answer=ANSWER)


async def deliver(network: Network) -> None:
    """Make the late requests, which must have no effect."""
    late, network.late = network.late, []
    for call in late:
        try:
            await attempt(network, call, None)
        except QueueError:
            continue  # No caller waits for the answer.


async def _result(task: "asyncio.Future[T]") -> T:
    await asyncio.wait({task})
    return task.result()
