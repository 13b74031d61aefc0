"""The contract: parking deliveries of unknown events or versions."""

import pytest

from infra.mq import MessageQueue, Outcome
from tests.contract.acting import (
    consumer,
    counters,
    declare,
    drain,
    end,
    fetch,
    fetch_one,
    message,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness, requires

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@BOTH
async def test_parked_delivery_is_not_claimed_until_its_event_is_known(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    assert await worker.settle([end(await fetch_one(worker), Outcome.PARK)]) == []
    await harness.clock.advance(5)
    assert await fetch(worker) == []
    assert await worker.unpark({"work": ["Other"], "other": ["Happened"]}) == 0
    assert await worker.unpark({}) == 0
    assert await fetch(worker) == []
    assert await worker.unpark({"work": ["Happened", "Other"]}) == 1
    assert await drain(worker) == ["a"]


@BOTH
async def test_unparked_delivery_is_due_at_once_despite_the_delay_of_its_settlement(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    await worker.settle([end(await fetch_one(worker), Outcome.PARK, delay=60)])
    await worker.unpark({"work": ["Happened"]})
    assert await drain(worker) == ["a"]


async def test_unpark_releases_known_events_only(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two")))
    worker = await consumer(queue)
    await queue.publish([message(str(number), event=("One", "Two")[number % 2]) for number in range(6)])
    await worker.settle([end(it, Outcome.PARK) for it in await fetch(worker)])
    assert await worker.unpark({"work": {"Two"}}) == 3
    assert sorted(await drain(worker)) == ["1", "3", "5"]
    assert (await stats(queue)).parked == 3


async def test_unparked_delivery_keeps_its_counters(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    for outcome in (Outcome.RETRY, Outcome.DEFER, Outcome.PARK):
        await worker.settle([end(await fetch_one(worker), outcome)])
    await worker.unpark({"work": ["Happened"]})
    assert counters((await fetch_one(worker)).deliveries[0]) == (1, 1, 0, 0)


async def test_parked_head_blocks_only_its_own_key(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two"), ordered=True))
    worker = await consumer(queue)
    await queue.publish([message("a1", event="Two", key="a"), message("a2", event="One", key="a")])
    await worker.settle([end(await fetch_one(worker), Outcome.PARK)])
    await queue.publish([message("a3", event="One", key="a"), message("b1", event="One", key="b")])
    assert await drain(worker) == ["b1"]
    assert await worker.unpark({"work": ["One"]}) == 0
    assert await drain(worker) == []
    assert await worker.unpark({"work": ["Two"]}) == 1
    assert await drain(worker) == ["a1", "a2", "a3"]


async def test_deliveries_done_before_the_parked_delivery_stay_done(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish([message("a1", key="a"), message("a2", key="a"), message("a3", key="a")])
    claim = await fetch_one(worker)
    await worker.settle([end(claim), end(claim, Outcome.PARK, nth=1)])
    await worker.unpark({"work": ["Happened"]})
    assert await drain(worker) == ["a2", "a3"]


async def test_unpark_accepts_any_name_of_the_subscription(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("new", aliases=("old",)))
    worker = await consumer(queue, "old")
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker, "old"), Outcome.PARK)])
    assert await worker.unpark({"old": ["Happened"]}) == 1
    assert await drain(worker, "old") == ["a"]


@BOTH
async def test_delivery_parked_for_a_version_waits_until_the_version_is_known(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    await worker.settle([end(await fetch_one(worker), Outcome.PARK, needs="Happened@2")])
    assert await worker.unpark({"work": ["Happened", "Happened@3"]}) == 0
    assert await fetch(worker) == []
    assert await worker.unpark({"work": ["Happened@2"]}) == 1
    await worker.settle([end(await fetch_one(worker), Outcome.PARK)])
    assert await worker.unpark({"work": ["Happened@2"]}) == 0
    assert await worker.unpark({"work": ["Happened"]}) == 1
    assert await drain(worker) == ["a"]


@requires("durable")
async def test_parked_delivery_stays_parked_after_a_restart(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker), Outcome.PARK)])
    reopened = await harness.reopen()
    later = await consumer(reopened)
    assert await fetch(later) == []
    assert await later.unpark({"work": ["Happened"]}) == 1
    assert await drain(later) == ["a"]
