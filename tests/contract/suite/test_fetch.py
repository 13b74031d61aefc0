"""The contract: fetching claims."""

import asyncio
from dataclasses import replace

import pytest
from msgspec import structs

from infra.mq import Claim, Consumer, MessageQueue, Outcome, QueueClosed
from tests.contract.acting import (
    ANSWER,
    LIMITS,
    WORK,
    consumer,
    counters,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    keyed,
    kill,
    message,
    start,
    until_done,
)
from tests.contract.harness import Harness


async def test_an_unordered_claim_holds_one_delivery(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish(keyed("a1", "a2", "b1"))
    claims = await fetch(worker)
    assert [ids([it]) for it in claims] == [["a1"], ["a2"], ["b1"]]


async def test_fetch_returns_at_most_the_requested_claims_per_subscription(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, names=("first", "second"))
    await queue.publish([message(str(number)) for number in range(5)])
    claims = await worker.fetch({"first": 2, "second": 3}, wait=0)
    assert [it.subscription for it in claims].count("first") == 2
    assert [it.subscription for it in claims].count("second") == 3
    assert ids([it for it in claims if it.subscription == "first"]) == ["0", "1"]


async def test_the_limit_of_an_ordered_subscription_counts_mailboxes(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "a2", "c1"))
    assert ids(await fetch(worker, limit=2)) == ["a1", "a2", "b1"]
    assert ids(await fetch(worker, limit=2)) == ["c1"]


async def test_delivery_due_first_is_claimed_first(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("retried at 3"), message("retried at 1")])
    first, second = await fetch(worker)
    await worker.settle([end(first, Outcome.RETRY, delay=3), end(second, Outcome.RETRY, delay=1)])
    await queue.publish([message("at 0")])
    await queue.publish([message("delayed to 2", due_at=queue.time() + 2)])
    await harness.clock.advance(5)
    await queue.publish([message("at 5")])
    expected = ["at 0", "retried at 1", "delayed to 2", "retried at 3", "at 5"]
    assert [ids(await fetch(worker, limit=1)) for _ in expected] == [[each] for each in expected]


async def test_claimed_delivery_is_not_claimed_again(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    other = await consumer(elsewhere)
    await queue.publish([message("a"), message("b")])
    assert ids(await fetch(worker, limit=1)) == ["a"]
    assert ids(await fetch(other)) == ["b"]
    assert await fetch(worker) == []


async def test_concurrent_fetches_do_not_overlap(harness: Harness) -> None:
    queues = [await harness.queue(), await harness.queue()]
    workers = [await start(harness, queues[number % 2]) for number in range(4)]
    await queues[0].publish([message(f"{number:02}") for number in range(60)])
    fetched = await asyncio.gather(*(fetch(it, limit=20) for it in workers))
    assert sorted(each for claims in fetched for each in ids(claims)) == [f"{number:02}" for number in range(60)]


async def test_paused_parked_blocked_unknown_and_unrequested_are_not_claimed(
    harness: Harness, queue: MessageQueue
) -> None:
    names = ("paused", "parked", "blocked", "unwanted")
    worker = await start(harness, queue, ordered=True, names=names)
    await queue.publish(keyed("a1", "a2"))
    await queue.pause("paused")
    [parked], [blocked] = await fetch(worker, "parked"), await fetch(worker, "blocked")
    await worker.settle([end(parked, Outcome.PARK), end(blocked, Outcome.BLOCK, error="it broke")])
    assert await worker.fetch(dict.fromkeys(names, 10) | {"unwanted": 0, "unknown": 10}, wait=0) == []
    assert await worker.fetch({}, wait=0) == []
    assert ids(await fetch(worker, "unwanted")) == ["a1", "a2"]


async def test_an_ordered_claim_holds_the_first_deliveries_of_one_mailbox(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    expected = [f"{number:02}" for number in range(LIMITS.mailbox_batch + 3)]
    await queue.publish([message(each, key="k") for each in expected])
    claim = await fetch_one(worker)
    assert claim.ordered
    assert claim.ordering_key == "k"
    assert ids([claim]) == expected[: LIMITS.mailbox_batch]
    await finish(worker, claim)
    assert ids([await fetch_one(worker)]) == expected[LIMITS.mailbox_batch :]


async def test_each_consumer_has_its_own_mailbox_batch(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2", "a3"))
    frugal = await consumer(queue, limits=replace(LIMITS, mailbox_batch=2))
    claim = await fetch_one(frugal)
    assert ids([claim]) == ["a1", "a2"]
    await finish(frugal, claim)
    await queue.publish(keyed("a4", "a5"))
    assert ids(await fetch(worker)) == ["a3", "a4", "a5"]


async def test_claims_of_few_mailboxes_hold_at_most_the_mailbox_run(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue, ordered=True)
    worker = await consumer(queue, limits=replace(LIMITS, mailbox_batch=2, mailbox_run=6))
    await queue.publish([message(f"{key}{n}", key=key) for n in range(10) for key in "ab"])
    handled: list[str] = []
    while claims := await fetch(worker, limit=5):
        for claim in claims:
            left = 10 - sum(it.startswith(ids([claim])[0][0]) for it in handled)
            assert min(left, 2) <= len(claim.deliveries) <= 6
        assert len(ids(claims)) <= 5 * 2
        handled.extend(ids(claims))
        assert await fetch(worker) == []
        await finish(worker, *claims)
    for key in "ab":
        assert [it for it in handled if it.startswith(key)] == [f"{key}{n}" for n in range(10)]


async def test_every_mailbox_that_is_due_limits_the_claims_to_the_batch(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue, ordered=True)
    worker = await consumer(queue, limits=replace(LIMITS, mailbox_batch=2, mailbox_run=6))
    await queue.publish(keyed("a1", "b1", "a2", "b2", "a3", "b3"))
    assert ids(await fetch(worker, limit=2)) == ["a1", "a2", "b1", "b2"]


async def test_claimed_mailbox_is_not_claimed_again_until_released(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=True)
    other = await consumer(elsewhere)
    await queue.publish(keyed("a1", "a2"))
    claim = await fetch_one(worker)
    await queue.publish(keyed("a3", "b1"))
    assert ids(await fetch(other)) == ["b1"]
    assert await worker.settle([end(claim)]) == []
    assert await fetch(other) == []
    assert await worker.settle([end(claim, nth=1)]) == []
    assert ids(await fetch(other)) == ["a3"]


async def test_delivery_with_two_takeovers_is_claimed_alone(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    await kill(harness, queue)
    await kill(harness, queue)
    await queue.publish(keyed("a3"))
    worker = await consumer(queue)
    claims: list[Claim] = []
    for _ in range(3):
        claims.append(await fetch_one(worker))
        await finish(worker, claims[-1])
    assert [ids([it]) for it in claims] == [["a1"], ["a2"], ["a3"]]
    assert [counters(it.deliveries[0]) for it in claims] == [(0, 0, 2, 0), (0, 0, 2, 0), (0, 0, 0, 0)]


async def test_each_consumer_has_its_own_number_of_takeovers_of_suspects(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    await kill(harness, queue)
    cautious = await consumer(queue, limits=replace(LIMITS, suspect_after=1))
    claim = await fetch_one(cautious)
    assert ids([claim]) == ["a1"]
    await finish(cautious, claim)
    await queue.publish(keyed("a3"))
    assert ids([await fetch_one(await consumer(queue, limits=replace(LIMITS, suspect_after=3)))]) == ["a2", "a3"]


async def test_a_claim_ends_before_a_delivery_with_two_takeovers(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    for _ in range(2):
        victim = await consumer(queue)
        assert await victim.isolate(await fetch_one(victim))
        await harness.crash(victim)
        assert await (await consumer(queue)).recover() == 2
    worker = await consumer(queue)
    first = await fetch_one(worker)
    await finish(worker, first)
    second = await fetch_one(worker)
    assert [ids([first]), ids([second])] == [["a1"], ["a2"]]
    assert counters(first.deliveries[0]) == (0, 0, 0, 2)
    assert counters(second.deliveries[0]) == (0, 0, 2, 0)


async def test_fetch_without_waiting_returns_at_once(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    before = harness.clock.time()
    assert await worker.fetch({WORK: 1}, wait=0) == []
    assert harness.clock.time() == before


async def test_fetch_returns_no_claims_after_the_wait(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    before = harness.clock.time()
    assert await until_done(harness, worker.fetch({WORK: 1}, wait=3), step=0.5, answer=ANSWER) == []
    assert 3 <= harness.clock.time() - before <= 4


async def test_fetch_returns_as_soon_as_any_process_publishes(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=8))
    await harness.clock.settle()
    await elsewhere.publish([message("a")])
    before = harness.clock.time()
    assert ids(await until_done(harness, _result(fetching), step=0.05, answer=ANSWER)) == ["a"]
    assert harness.clock.time() - before < 1


async def test_fetch_returns_as_soon_as_a_delivery_is_due(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker), Outcome.RETRY, delay=2)])
    before = harness.clock.time()
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=8))
    assert ids(await until_done(harness, _result(fetching), step=0.25, answer=ANSWER)) == ["a"]
    assert 2 <= harness.clock.time() - before < 3


async def test_fetch_returns_when_another_process_releases_a_mailbox(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=True)
    other = await consumer(elsewhere)
    await queue.publish(keyed("a1", "a2"))
    claim = await fetch_one(worker)
    fetching = asyncio.ensure_future(other.fetch({WORK: 1}, wait=8))
    await harness.clock.settle()
    await worker.settle([end(claim, Outcome.RELEASE)])
    assert ids(await until_done(harness, _result(fetching), step=0.05)) == ["a1", "a2"]


async def test_fetch_returns_when_a_message_published_meanwhile_becomes_due(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    before = harness.clock.time()
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=8))
    await harness.clock.settle()
    await elsewhere.publish([message("a", due_at=before + 3)])
    assert ids(await until_done(harness, _result(fetching), step=0.25)) == ["a"]
    # Before the end of the wait; how long before depends on the store's speed while the fake clock advances.
    assert 3 <= harness.clock.time() - before < 8


async def test_wake_ends_the_wait_of_fetch(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=60))
    await harness.clock.settle()
    assert not fetching.done()
    worker.wake()
    async with asyncio.timeout(5):
        assert await fetching == []


async def test_wake_before_the_wait_ends_only_the_next_wait(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    worker.wake()
    before = harness.clock.time()
    async with asyncio.timeout(5):
        assert await worker.fetch({WORK: 1}, wait=60) == []
    assert harness.clock.time() == before
    assert await until_done(harness, worker.fetch({WORK: 1}, wait=2), step=0.5) == []
    assert harness.clock.time() - before >= 2


async def test_woken_fetch_returns_due_deliveries(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    worker.wake()
    assert ids(await worker.fetch({WORK: 1}, wait=60)) == ["a"]


async def test_closed_consumer_cannot_fetch(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.close()
    with pytest.raises(QueueClosed):
        await fetch(worker)


async def test_consumer_that_lost_its_lease_cannot_fetch(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    worker.abandon()
    with pytest.raises(QueueClosed):
        await fetch(worker)


async def _result(fetching: asyncio.Future[list[Claim]]) -> list[Claim]:
    return await fetching


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_fetch_returns_a_bounded_number_of_bytes(harness: Harness, queue: MessageQueue, ordered: bool) -> None:
    worker = await start(harness, queue, ordered=ordered)
    size = LIMITS.fetch_bytes // 10
    for number in range(25):
        await queue.publish([structs.replace(message(f"{number:02}", key=f"{number}"), body=bytes(size))])
    drained: list[str] = []
    while claims := await fetch(worker):
        assert sum(len(it.body) for claim in claims[1:] for it in claim.deliveries) <= LIMITS.fetch_bytes
        drained += ids(claims)
        await finish(worker, *claims)
    assert drained == [f"{number:02}" for number in range(25)]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_each_consumer_has_its_own_bound_of_bytes(harness: Harness, queue: MessageQueue, ordered: bool) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([structs.replace(message(each, key=each), body=bytes(60)) for each in "abcdef"])
    frugal = await consumer(queue, limits=replace(LIMITS, fetch_bytes=150))
    first = await fetch(frugal)
    assert sum(len(it.body) for claim in first[1:] for it in claim.deliveries) <= 150
    assert ids([*first, *await fetch(worker)]) == ["a", "b", "c", "d", "e", "f"]


async def test_message_larger_than_the_bound_of_a_fetch_is_still_claimed(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([structs.replace(message(each), body=bytes(LIMITS.fetch_bytes + 1)) for each in "ab"])
    assert ids(await fetch(worker)) == ["a"]
    assert ids(await fetch(worker)) == ["b"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("turns", [0, 1, 3, 8])
async def test_cancelled_fetch_leaves_nothing_claimed_while_its_consumer_lives(
    harness: Harness, queue: MessageQueue, turns: int, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message(each, key=each) for each in "abc"])
    cancelled = asyncio.ensure_future(fetch(worker))
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    found = [] if cancelled.cancelled() else ids(cancelled.result())
    claims = await until_done(harness, _claims_until(worker, 3 - len(found)))
    assert sorted(found + ids(claims)) == ["a", "b", "c"]


@pytest.mark.parametrize("turns", [0, 1, 3, 8])
async def test_cancelled_fetch_leaves_nothing_claimed_by_a_closed_consumer(
    harness: Harness, queue: MessageQueue, turns: int
) -> None:
    worker = await start(harness, queue)
    await queue.publish([message(each) for each in "abc"])
    cancelled = asyncio.ensure_future(fetch(worker))
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled.cancel()
    await worker.close()
    await asyncio.wait([cancelled])
    claims = await until_done(harness, _claims_until(await consumer(queue), 3))
    assert sorted(ids(claims)) == ["a", "b", "c"]


async def _claims_until(worker: Consumer, count: int) -> list[Claim]:
    claims: list[Claim] = []
    while len(claims) < count:
        claims += await worker.fetch({WORK: 100}, wait=1)
    return claims
