"""The contract: settlements, outcomes and fences."""

import itertools

import pytest

from infra.mq import Claim, MessageQueue, Outcome
from tests.contract.acting import (
    EVENT,
    WORK,
    consumer,
    counters,
    declare,
    drain,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    message,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
LATER = (Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE)
ENDS = tuple(it for it in Outcome if it is not Outcome.DONE)
FENCED = [(it, ordered) for it in ENDS for ordered in (False, True) if ordered or it is not Outcome.BLOCK]


async def test_done_deletes_only_the_delivery_of_its_own_subscription(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("first", "second"))
    await queue.publish([message("a")])
    assert await worker.settle([end(await fetch_one(worker, "first"))]) == []
    assert await drain(worker, "first") == []
    assert (await stats(queue, "first")).in_flight == 0
    assert await drain(worker, "second") == ["a"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("outcome", LATER)
async def test_requeued_delivery_is_claimable_after_its_delay_and_never_earlier(
    harness: Harness, queue: MessageQueue, outcome: Outcome, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    assert await worker.settle([end(await fetch_one(worker), outcome, delay=5)]) == []
    assert await fetch(worker) == []
    await harness.clock.advance(4.999)
    assert await fetch(worker) == []
    await harness.clock.advance(0.001)
    assert ids([await fetch_one(worker)]) == ["a"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("outcome", LATER)
async def test_delivery_requeued_without_a_delay_is_due_at_once(
    harness: Harness, queue: MessageQueue, outcome: Outcome, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    await worker.settle([end(await fetch_one(worker), outcome)])
    assert ids([await fetch_one(worker)]) == ["a"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_each_outcome_changes_only_its_own_counters(harness: Harness, queue: MessageQueue, ordered: bool) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    seen = []
    for outcome in (Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.RETRY, Outcome.DEFER, Outcome.PARK):
        claim = await fetch_one(worker)
        seen.append(counters(claim.deliveries[0]))
        await worker.settle([end(claim, outcome)])
    await worker.unpark({"work": ["Happened"]})
    seen.append(counters((await fetch_one(worker)).deliveries[0]))
    assert seen == [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 1, 0, 0),
        (1, 1, 0, 0),
        (2, 1, 0, 0),
        (2, 2, 0, 0),
        (2, 2, 0, 0),
    ]


async def test_failure_neither_repeats_nor_delays_other_deliveries_of_the_event(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, names=("flaky", "steady"))
    await queue.publish([message("a"), message("b")])
    flaky = await fetch(worker, "flaky")
    await worker.settle([end(flaky[0], Outcome.RETRY, delay=60), end(flaky[1])])
    claims = await fetch(worker, "steady")
    assert [counters(it.deliveries[0]) for it in claims] == [(0, 0, 0, 0), (0, 0, 0, 0)]
    await finish(worker, *claims)
    await harness.clock.advance(60)
    late = await consumer(queue, "flaky", "steady")
    assert await drain(late, "steady") == []
    assert await drain(late, "flaky") == ["a"]


async def test_a_dead_delivery_is_a_dead_letter_and_nothing_else(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker), Outcome.DEAD, error="ValueError: no")])
    assert await fetch(worker) == []
    assert [it.message_id for it in await queue.dead_letters()] == ["a"]


async def test_settling_nothing_does_nothing(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    assert await worker.settle([]) == []


async def test_many_settlements_take_effect_together(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message(str(number)) for number in range(60)])
    claims = await fetch(worker)
    outcomes = [Outcome.DONE, Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.DEAD]
    assert await worker.settle([end(it, outcomes[number % 6]) for number, it in enumerate(claims)]) == []
    now = await stats(queue)
    assert (now.ready, now.parked, now.dead, now.in_flight) == (30, 10, 10, 0)


@pytest.mark.parametrize(("outcome", "ordered"), FENCED)
async def test_a_stale_owner_changes_nothing_while_the_new_owner_works(
    harness: Harness, queue: MessageQueue, outcome: Outcome, ordered: bool
) -> None:
    stale = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    old = await fetch_one(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    new = await fetch_one(worker)
    settlement = end(old, outcome, delay=0, error="stale")
    assert await stale.settle([settlement]) == [settlement]
    assert await fetch(await consumer(queue)) == []
    assert await queue.dead_letters() == []
    assert await worker.settle([end(new, Outcome.RETRY)]) == []
    assert counters((await fetch_one(worker)).deliveries[0]) == (1, 0, 1, 0)


@pytest.mark.parametrize("outcome", ENDS)
async def test_stale_owner_changes_nothing_when_the_delivery_is_unclaimed(
    harness: Harness, queue: MessageQueue, outcome: Outcome
) -> None:
    stale = await start(harness, queue, ordered=True)
    await queue.publish([message("a", key="k")])
    old = await fetch_one(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    assert len(await stale.settle([end(old, outcome)])) == 1
    assert counters((await fetch_one(worker)).deliveries[0]) == (0, 0, 1, 0)


async def test_done_of_an_unordered_delivery_is_never_fenced(harness: Harness, queue: MessageQueue) -> None:
    stale = await start(harness, queue)
    await queue.publish([message("free again"), message("owned by another")])
    old = await fetch(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    free, owned = await fetch(worker)
    await worker.settle([end(free, Outcome.RELEASE)])
    assert await stale.settle([end(it) for it in old]) == []
    assert await fetch(worker) == []
    settlement = end(owned, Outcome.RETRY)
    assert await worker.settle([settlement]) == [settlement]
    assert await fetch(worker) == []


async def test_done_of_a_deleted_unordered_delivery_does_nothing(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("b")])
    first, second = await fetch(worker)
    await finish(worker, first)
    assert await worker.settle([end(first), end(second)]) == []
    assert await fetch(worker) == []


async def test_done_of_an_ordered_delivery_is_fenced_like_other_outcomes(harness: Harness, queue: MessageQueue) -> None:
    stale = await start(harness, queue, ordered=True)
    await queue.publish([message("a", key="k"), message("b", key="k")])
    old = await fetch_one(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    assert await stale.settle([end(old), end(old, nth=1)]) == [end(old), end(old, nth=1)]
    assert await drain(worker) == ["a", "b"]


async def test_fenced_settlements_do_not_prevent_other_settlements_of_the_call(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("b"), message("c")])
    first, second, third = await fetch(worker)
    await worker.settle([end(second, Outcome.DEAD)])
    again = end(second, Outcome.RETRY)
    assert await worker.settle([end(first, Outcome.RETRY), again, end(third, Outcome.RETRY)]) == [again]
    assert await drain(worker) == ["a", "c"]


async def test_settlement_of_a_claim_under_a_former_name_takes_effect(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("old",))
    await queue.publish([message("a"), message("b")])
    first, second = await fetch(worker, "old")
    await declare(harness, queue, subscription("new", aliases=("old",)))
    assert await worker.settle([end(first), end(second, Outcome.RETRY)]) == []
    assert await drain(worker, "new") == ["b"]


@pytest.mark.parametrize(("outcome", "ordered"), FENCED)
async def test_repeated_settlement_never_ends_a_later_claim_of_its_worker(
    harness: Harness, queue: MessageQueue, outcome: Outcome, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    first = await fetch_one(worker)
    await worker.settle([end(first, Outcome.RETRY)])
    second = await fetch_one(worker)
    repeated = end(first, outcome, error="again")
    assert await worker.settle([repeated]) == [repeated]
    assert await fetch(await consumer(queue)) == []
    assert counters(second.deliveries[0]) == (1, 0, 0, 0)
    assert await worker.settle([end(second, Outcome.RELEASE)]) == []
    assert counters((await fetch_one(worker)).deliveries[0]) == (1, 0, 0, 0)


@BOTH
async def test_fence_grows_with_every_claim(harness: Harness, queue: MessageQueue, ordered: bool) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    fences = [0]
    for outcome in (Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK):
        claim = await fetch_one(worker)
        fences.append(claim.fence)
        await worker.settle([end(claim, outcome)])
    await worker.unpark({WORK: [EVENT]})
    await harness.crash(worker)
    rescuer = await consumer(queue)
    await rescuer.recover()
    fences.append((await fetch_one(rescuer)).fence)
    assert all(earlier < later for earlier, later in itertools.pairwise(fences)), fences


@BOTH
async def test_stale_claim_of_the_same_worker_cannot_be_isolated(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    first = await fetch_one(worker)
    await worker.settle([end(first, Outcome.RELEASE)])
    second = await fetch_one(worker)
    assert not await worker.isolate(first)
    assert await worker.isolate(second)


@BOTH
async def test_more_than_a_thousand_claims_can_be_settled_in_one_call(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message(f"{number}", key=f"{number}") for number in range(1_200)])
    claims: list[Claim] = []
    while some := await fetch(worker, limit=500):
        claims += some
    assert len(claims) == 1_200
    ends = [end(claim, (Outcome.DONE, Outcome.RETRY)[number % 2]) for number, claim in enumerate(claims)]
    assert await worker.settle(ends) == []
    now = await stats(queue)
    assert (now.in_flight, now.ready) == (0, 600)
