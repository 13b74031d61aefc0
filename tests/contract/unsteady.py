"""A queue whose caller has bad luck: requests are dropped, answered in vain, late or cancelled, and made again.

It stands between the machine and any driver, and hands the machine the outcome that repetition leads to, so that the
model can go on knowing exactly what must be there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

from infra.mq import (
    Claim,
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

Luck = Literal["lose", "late", "cancel"]
"""A request takes effect without an answer, takes effect after its repetition, or is cancelled by its caller."""

ATTEMPTS = 50


class Network(Protocol):
    """What the requests of one machine go through."""

    harness: Harness
    luck: Luck | None
    """What happens to the next request that is made for the first time."""

    patience: int
    """After how many rounds of the loop a request is cancelled."""

    late: list[Callable[[], Awaitable[object]]]
    """Requests that are still to arrive."""


class Unknown:
    """The answer to a request that was made again: the first one may have done it. It equals whatever is expected."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Unheard(Exception):
    """A fetch failed: what it claimed, if anything, belongs to its worker, and the caller does not know of it."""


class UnsteadyQueue:
    """A `MessageQueue` as far as the machine uses it; the rest is the driver's own."""

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

    async def retire(
        self, name: str, *, event: str | None = None, backlog: Literal["refuse", "discard", "dead"] = "refuse"
    ) -> int:
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
                return answer  # else some counts may be of that moment, and some of this one

    async def dead_letters(self, *, limit: int = 100) -> list[DeadLetter]:
        return await ask(self._network, lambda: self._inner.dead_letters(limit=limit), reading=True)

    async def consumer(self, info: WorkerInfo) -> Consumer:
        return cast("Consumer", UnsteadyConsumer(await self._inner.consumer(info), self._network))

    async def _ask(self, call: Callable[[], Awaitable[T]], *, may_be_late: bool = True) -> T:
        return await ask(self._network, call, may_be_late=may_be_late)


class UnsteadyConsumer:
    """A `Consumer` as far as the machine uses it."""

    def __init__(self, inner: Consumer, network: Network) -> None:
        self._inner = inner
        self._network = network

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the driver has
        return getattr(self._inner, name)

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        """Return claims.

        Raises:
            Unheard: nobody knows what was claimed.
        """
        network = self._network
        luck, network.luck = network.luck, None
        try:
            # An answer is not lost here, where its driver would not know of it, but on the wire.
            return await attempt(network, lambda: self._inner.fetch(wants, wait=wait), luck)
        except (QueueUnavailable, asyncio.CancelledError) as error:
            raise Unheard from error

    def renew(self) -> bool:
        """Renew the lease as the heartbeat does, which tries again."""
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
    """Make a request again until it is answered; the answer is `Unknown` if it was made more than once."""
    luck: Luck | None = None
    if not reading:
        luck, network.luck = network.luck, None
    if luck == "late" and may_be_late:
        network.late.append(call)
    if luck == "lose":
        await attempt(network, call, None)
    for tried in range(ATTEMPTS):
        try:
            answer = await attempt(network, call, None if tried else luck)
        except (QueueUnavailable, QueueIndeterminate, asyncio.CancelledError):
            continue
        except (SubscriptionNotFound, MailboxNotBlocked):
            if tried or luck == "lose":
                return cast("T", Unknown())  # the first time it was done
            raise
        return cast("T", Unknown()) if (tried and not reading) or luck == "lose" else answer
    raise AssertionError(f"unanswered after {ATTEMPTS} attempts")


async def attempt(network: Network, call: Callable[[], Awaitable[T]], luck: Luck | None) -> T:
    """Make a request once, while the time goes on; with bad luck, cancel it."""
    task = asyncio.ensure_future(call())
    if luck == "cancel":
        await network.harness.clock.settle(network.patience)
        task.cancel()
        await asyncio.sleep(0)
    return await until_done(network.harness, _result(task), step=0.25, answer=ANSWER)


async def deliver(network: Network) -> None:
    """Let all that is late arrive; what it does then is nothing."""
    late, network.late = network.late, []
    for call in late:
        try:
            await attempt(network, call, None)
        except QueueError:
            continue  # nobody waits for what it says


async def _result(task: "asyncio.Future[T]") -> T:
    await asyncio.wait({task})
    return task.result()
