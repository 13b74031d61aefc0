"""Helpers of the contract tests: messages, subscriptions, consumers, claims and settlements."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from infra.mq import (
    Claim,
    ClaimedDelivery,
    ClaimLimits,
    Consumer,
    Failure,
    Message,
    MessageQueue,
    Outcome,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)
from tests.contract.harness import Harness

T = TypeVar("T")

EVENT = "Happened"
WORK = "work"
"""The subscription of most tests."""

LIMITS = ClaimLimits(suspect_after=2, mailbox_batch=10, fetch_bytes=8 * 1024 * 1024)
"""The limits of most consumers' claims."""

ANSWER = 0.2
"""Seconds of real time within which a server answers, even on a busy machine."""

STAYING = {Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK}

_worker_ids = itertools.count(1)


def message(
    id: str,  # noqa: A002  # the contract's name for it
    *,
    event: str = EVENT,
    key: str | None = None,
    due_at: float | None = None,
    dedupe: bool = False,
    fresh: bool = False,
    published_at: float = 1_700_000_000.0,
) -> Message:
    """Return a message whose body contains its id."""
    return Message(
        id=id,
        event=event,
        body=f"body of {id}".encode(),
        published_at=published_at,
        ordering_key=key,
        due_at=due_at,
        dedupe=dedupe,
        fresh=fresh,
    )


def keyed(*ids: str) -> list[Message]:
    """Return messages whose ordering key is the first letter of their id."""
    return [message(each, key=each[0]) for each in ids]


def subscription(
    name: str = WORK, *, events: Iterable[str] = (EVENT,), ordered: bool = False, aliases: tuple[str, ...] = ()
) -> Subscription:
    """Return a subscription."""
    return Subscription(name=name, events=frozenset(events), ordered=ordered, aliases=aliases)


async def until_done(
    harness: Harness, work: Coroutine[Any, Any, T], *, step: float = 0.1, steps: int = 200, answer: float = 0.01
) -> T:
    """Run `work` while the clock advances in steps, as drivers may wait for a time; return the result.

    Before each step a server has `answer` seconds of real time to answer: ANSWER where the number of steps matters.
    """
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await harness.clock.settle(5)
        if not task.done():
            await asyncio.wait({task}, timeout=answer)
        if task.done():
            break
        await harness.clock.advance(step)
    assert task.done(), f"{work} has not ended after {steps} steps of {step} s"
    return task.result()


async def declare(
    harness: Harness, queue: MessageQueue, *subscriptions: Subscription, broadcasts: Collection[str] = ()
) -> None:
    """Declare, while the clock advances as far as the driver needs."""
    await until_done(harness, queue.declare(subscriptions, broadcasts))


async def start(
    harness: Harness, queue: MessageQueue, *, ordered: bool = False, names: tuple[str, ...] = (WORK,)
) -> Consumer:
    """Declare a subscription of `EVENT` per name, and return a consumer of them."""
    await declare(harness, queue, *(subscription(name, ordered=ordered) for name in names))
    return await consumer(queue, *names)


async def consumer(queue: MessageQueue, *names: str, limits: ClaimLimits = LIMITS) -> Consumer:
    """Register one more worker that has these listeners."""
    info = WorkerInfo(id=f"worker-{next(_worker_ids)}", subscriptions=frozenset(names or (WORK,)), host="host", pid=1)
    return await queue.consumer(info, limits)


async def fetch(worker: Consumer, name: str = WORK, limit: int = 100) -> list[Claim]:
    """Claim the due deliveries of one subscription."""
    return await worker.fetch({name: limit}, wait=0)


async def fetch_one(worker: Consumer, name: str = WORK) -> Claim:
    """Return the only claim that is due."""
    claims = await fetch(worker, name)
    assert len(claims) == 1, [ids(claims)]
    return claims[0]


def ids(claims: Iterable[Claim]) -> list[str]:
    """Return the message ids of all deliveries in the claims."""
    return [delivery.message_id for claim in claims for delivery in claim.deliveries]


def end(
    claim: Claim,
    outcome: Outcome = Outcome.DONE,
    *,
    nth: int = 0,
    delay: float = 0.0,
    error: str | None = None,
    charge: bool = True,
    needs: str | None = None,
) -> Settlement:
    """Return the settlement of the claim's `nth` delivery; it closes the claim if no other settlement can follow."""
    return Settlement(
        claim=claim,
        delivery=claim.deliveries[nth],
        outcome=outcome,
        delay=delay,
        failure=None if error is None else Failure(error=error, traceback=f"traceback of {error}"),
        charge=charge,
        needs=needs,
        close=outcome in STAYING or nth == len(claim.deliveries) - 1,
    )


async def finish(worker: Consumer, *claims: Claim) -> None:
    """Settle all deliveries of the claims as done."""
    done = [end(claim, nth=nth) for claim in claims for nth in range(len(claim.deliveries))]
    assert await worker.settle(done) == []


async def drain(worker: Consumer, name: str = WORK) -> list[str]:
    """Fetch and finish until nothing is due; return the message ids in order."""
    drained: list[str] = []
    while claims := await fetch(worker, name):
        drained += ids(claims)
        await finish(worker, *claims)
    return drained


async def stats(queue: MessageQueue, name: str = WORK) -> SubscriptionStats:
    """Return the stats of one subscription."""
    return next(it for it in await queue.stats() if it.name == name)


async def kill(harness: Harness, queue: MessageQueue, name: str = WORK) -> None:
    """Let a new worker claim everything due and crash; recover its claims."""
    victim = await consumer(queue, name)
    await fetch(victim, name)
    await harness.crash(victim)
    rescuer = await consumer(queue, name)
    await rescuer.recover()
    await rescuer.close()


def counters(delivery: ClaimedDelivery) -> tuple[int, int, int, int]:
    """Return a delivery's failures, deferrals, takeovers and crashes."""
    return delivery.failures, delivery.deferrals, delivery.takeovers, delivery.crashes


@asynccontextmanager
async def rolled_back(harness: Harness, queue: MessageQueue) -> AsyncIterator[None]:
    """Run a block in an ambient transaction that fails at its end."""
    with suppress(ZeroDivisionError):
        async with harness.transaction(queue):
            yield
            raise ZeroDivisionError
