"""The contract: leases, recovery and takeovers."""

import math
import threading

import pytest

from infra.mq import MessageQueue, Outcome
from tests.contract.acting import (
    WORK,
    consumer,
    counters,
    drain,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    keyed,
    kill,
    message,
    start,
    stats,
)
from tests.contract.harness import Harness, requires

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@BOTH
async def test_claim_of_a_live_worker_is_never_taken_over(harness: Harness, ordered: bool) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=ordered)
    other = await consumer(elsewhere)
    await queue.publish([message("a", key="k")])
    claim = await fetch_one(worker)
    for _ in range(40):
        await harness.clock.advance(5)
        assert worker.renew()
        assert other.renew()
        assert await other.recover() == 0
        assert await worker.recover() == 0
    assert await fetch(other) == []
    await finish(worker, claim)
    assert not worker.lost


@BOTH
async def test_the_claims_of_a_dead_worker_are_due_after_recovery(harness: Harness, ordered: bool) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    victim = await start(harness, queue, ordered=ordered)
    await queue.publish(keyed("a1", "b1", "c1"))
    held = await fetch(victim, limit=2)
    assert ids(held) == ["a1", "b1"]
    await harness.crash(victim)
    rescuer = await consumer(elsewhere)
    assert await rescuer.recover() == 2
    assert await rescuer.recover() == 0
    assert sorted(await drain(rescuer)) == ["a1", "b1", "c1"]


async def test_worker_that_stops_renewing_is_considered_dead(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await fetch_one(worker)
    await harness.clock.advance((harness.lease or 60) - 1)
    assert not worker.lost
    await harness.clock.advance(1)
    other = await consumer(queue)
    by_time = harness.lease is not None
    assert await other.recover() == (1 if by_time else 0)
    assert worker.renew() != by_time
    assert worker.lost == by_time


async def test_takeover_happens_only_after_valid_until_which_renewal_extends(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await fetch_one(worker)
    until = worker.valid_until
    left = until - harness.clock.monotonic()
    assert 0 < left <= (harness.lease or math.inf)
    await harness.clock.advance(min(left, 60) - 0.001)
    other = await consumer(queue)
    assert await other.recover() == 0
    assert worker.renew()
    assert worker.valid_until > until or until == math.inf


async def test_takeover_of_a_delivery_is_counted_but_not_as_a_failure(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker), Outcome.RETRY)])
    await kill(harness, queue)
    assert counters((await fetch_one(await consumer(queue))).deliveries[0]) == (1, 0, 1, 0)


async def test_takeover_is_counted_for_claimed_deliveries_of_a_mailbox_only(
    harness: Harness, queue: MessageQueue
) -> None:
    victim = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2", "a3"))
    claim = await fetch_one(victim)
    await queue.publish(keyed("a4"))
    await victim.settle([end(claim)])
    await harness.crash(victim)
    rescuer = await consumer(queue)
    assert await rescuer.recover() == 2
    again = await fetch_one(rescuer)
    assert ids([again]) == ["a2", "a3", "a4"]
    assert [it.takeovers for it in again.deliveries] == [1, 1, 0]


@BOTH
async def test_death_of_a_worker_counts_a_crash_of_its_isolated_delivery(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    victim = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="a"), message("b", key="b")])
    first, _ = await fetch(victim)
    assert await victim.isolate(first)
    await harness.crash(victim)
    worker = await consumer(queue)
    assert await worker.recover() == 2
    deliveries = [it for claim in await fetch(worker) for it in claim.deliveries]
    assert {it.message_id: counters(it) for it in deliveries} == {"a": (0, 0, 0, 1), "b": (0, 0, 1, 0)}


@BOTH
@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK])
async def test_any_settlement_removes_the_isolation_mark(
    harness: Harness, queue: MessageQueue, outcome: Outcome, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    claim = await fetch_one(worker)
    assert await worker.isolate(claim)
    await worker.settle([end(claim, outcome)])
    await worker.unpark({WORK: ["Happened"]})
    await kill(harness, queue)
    delivery = (await fetch_one(await consumer(queue))).deliveries[0]
    assert (delivery.takeovers, delivery.crashes) == (1, 0)


async def test_isolation_marks_the_first_unsettled_delivery_of_a_mailbox(harness: Harness, queue: MessageQueue) -> None:
    victim = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2", "a3"))
    claim = await fetch_one(victim)
    assert await victim.isolate(claim)
    await victim.settle([end(claim)])
    assert await victim.isolate(claim)
    await harness.crash(victim)
    worker = await consumer(queue)
    await worker.recover()
    claim = await fetch_one(worker)
    assert [(it.message_id, it.takeovers, it.crashes) for it in claim.deliveries] == [("a2", 0, 1), ("a3", 1, 0)]


@BOTH
async def test_isolation_of_a_lost_claim_is_fenced(harness: Harness, queue: MessageQueue, ordered: bool) -> None:
    stale = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    old = await fetch_one(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    await fetch_one(worker)
    assert not await stale.isolate(old)
    await harness.crash(worker)
    rescuer = await consumer(queue)
    await rescuer.recover()
    assert counters((await fetch_one(rescuer)).deliveries[0]) == (0, 0, 2, 0)


async def test_several_dead_workers_are_recovered_at_once(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    await queue.publish([message("a"), message("b")])
    for _ in range(2):
        victim = await consumer(queue)
        await fetch(victim, limit=1)
        await harness.crash(victim)
    assert await (await consumer(queue)).recover() == 2


async def test_concurrent_recoveries_take_over_each_delivery_once(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    victim = await start(harness, queue)
    await queue.publish([message(str(number)) for number in range(10)])
    await fetch(victim)
    await harness.crash(victim)
    rescuers = [await consumer(queue), await consumer(elsewhere)]
    assert sum([await it.recover() for it in rescuers]) == 10
    assert [it.takeovers for claim in await fetch(rescuers[0]) for it in claim.deliveries] == [1] * 10


async def test_dead_worker_without_claims_leaves_nothing(harness: Harness, queue: MessageQueue) -> None:
    victim = await start(harness, queue)
    await harness.crash(victim)
    rescuer = await consumer(queue)
    assert await rescuer.recover() == 0
    await rescuer.close()
    assert (await stats(queue)).workers == 0


async def test_abandoned_consumer_never_regains_its_lease(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    before = (worker.renew(), worker.lost)
    worker.abandon()
    worker.abandon()
    after = [(worker.renew(), worker.lost) for _ in range(2)]
    assert before == (True, False)
    assert after == [(False, True)] * 2
    await worker.close()


async def test_abandoning_and_renewing_work_from_another_thread(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await fetch_one(worker)
    answers: list[bool] = []

    def beat() -> None:
        answers.append(worker.renew())
        worker.abandon()
        answers.append(worker.renew())

    thread = threading.Thread(target=beat)
    thread.start()
    thread.join()
    assert answers == [True, False]
    rescuer = await consumer(queue)
    assert await rescuer.recover() == 1
    assert await drain(rescuer) == ["a"]


@BOTH
async def test_close_releases_owned_claims_unchanged_and_at_once(harness: Harness, ordered: bool) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="a"), message("b", key="b")])
    first, second = await fetch(worker)
    await worker.settle([end(first, Outcome.RETRY)])
    first, *_ = await fetch(worker)
    await worker.isolate(second)
    await worker.close()
    await worker.close()
    other = await consumer(elsewhere)
    assert await other.recover() == 0
    deliveries = [it for claim in await fetch(other) for it in claim.deliveries]
    assert {it.message_id: counters(it) for it in deliveries} == {"a": (1, 0, 0, 0), "b": (0, 0, 0, 0)}


async def test_closed_worker_is_no_longer_counted(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    assert (await stats(queue)).workers == 1
    await worker.close()
    assert (await stats(queue)).workers == 0


async def test_a_kept_claim_stays_owned_until_its_process_ends(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "a2"))
    stuck, _ = await fetch(worker)
    worker.keep(stuck)
    await worker.close()
    other = await consumer(elsewhere)
    assert await other.recover() == 0
    assert ids(await fetch(other)) == ["b1"]
    await harness.crash(worker)
    assert await other.recover() == 2
    assert ids(await fetch(other)) == ["a1", "a2"]


async def test_claims_of_a_lost_consumer_are_left_to_recovery(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await fetch_one(worker)
    worker.abandon()
    await worker.close()
    other = await consumer(queue)
    assert await fetch(other) == []
    assert await other.recover() == 1
    assert counters((await fetch_one(other)).deliveries[0]) == (0, 0, 1, 0)


async def test_consumer_shows_its_worker_info(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    assert worker.info.subscriptions == {"work"}
    assert (worker.info.host, worker.info.pid) == ("host", 1)


@requires("durable")
@BOTH
async def test_claims_of_an_ended_process_remain_claims_of_a_dead_worker(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="k")])
    claim = await fetch_one(worker)
    assert await worker.isolate(claim)
    reopened = await harness.reopen()
    later = await consumer(reopened)
    assert await later.recover() == 1
    assert counters((await fetch_one(later)).deliveries[0]) == (0, 0, 0, 1)
