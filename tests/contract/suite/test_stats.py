"""The contract: stats and warnings."""

from infra.mq import MessageQueue, Outcome, SubscriptionStats
from tests.contract.acting import consumer, declare, end, fetch, keyed, message, start, stats, subscription
from tests.contract.harness import Harness


def unfinished(now: SubscriptionStats) -> int:
    """Return the number of unfinished deliveries in the stats."""
    return now.ready + now.retrying + now.scheduled + now.in_flight + now.parked + now.blocked


async def test_queue_without_subscriptions_has_no_stats(queue: MessageQueue) -> None:
    assert await queue.stats() == []


async def test_healthy_queue_has_no_warnings(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    await queue.publish([message("a")])
    assert await queue.warnings() == []


async def test_stats_list_declared_subscriptions_by_name(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("b", events=("One", "Two"), ordered=True), subscription("a"))
    first, second = await queue.stats()
    assert (first.name, set(first.events), first.ordered, first.paused) == ("a", {"Happened"}, False, False)
    assert (second.name, set(second.events), second.ordered) == ("b", {"One", "Two"}, True)
    assert (unfinished(first), first.dead, first.workers, first.oldest) == (0, 0, 0, None)
    assert dict(first.blocked_keys) == {}


async def test_every_unordered_delivery_is_counted_once_under_its_state(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message(str(number)) for number in range(10)])
    await queue.publish([message("later", due_at=queue.time() + 60)])
    claims = await fetch(worker, limit=7)
    outcomes = [Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.DEAD, Outcome.DONE]
    await worker.settle([end(claim, outcome, delay=5) for claim, outcome in zip(claims, outcomes, strict=False)])
    now = await stats(queue)
    assert (now.ready, now.retrying, now.scheduled) == (3, 3, 1)
    assert (now.in_flight, now.parked, now.blocked, now.dead) == (1, 1, 0, 1)
    await harness.clock.advance(5)
    later = await stats(queue)
    assert (later.ready, later.retrying) == (6, 0)


async def test_every_ordered_delivery_is_counted_once_under_its_state(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "c1", "d1", "e1", "e2"))
    await queue.publish([message("later", key="a", due_at=queue.time() + 60)])
    waiting, parked, blocked, _ = await fetch(worker, limit=4)
    await worker.settle([end(waiting, Outcome.RETRY, delay=5), end(parked, Outcome.PARK)])
    await worker.settle([end(blocked, Outcome.BLOCK, error="no")])
    await queue.publish(keyed("a2", "b2", "c2", "c3", "d2"))
    now = await stats(queue)
    assert (now.ready, now.retrying, now.scheduled) == (4, 1, 1)  # a2, d2, e1, e2
    assert (now.in_flight, now.parked, now.blocked, now.dead) == (1, 2, 3, 0)
    assert dict(now.blocked_keys) == {"c": "no"}
    assert unfinished(now) == 12


async def test_a_dead_workers_claims_are_in_flight_until_they_are_recovered(
    harness: Harness, queue: MessageQueue
) -> None:
    victim = await start(harness, queue)
    await queue.publish([message("a")])
    await fetch(victim)
    await harness.crash(victim)
    assert (await stats(queue)).in_flight == 1
    await (await consumer(queue)).recover()
    assert ((await stats(queue)).in_flight, (await stats(queue)).ready) == (0, 1)


async def test_only_live_workers_with_the_listener_are_counted(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    await start(harness, queue)
    await consumer(elsewhere, "work", "other")
    await consumer(elsewhere, "other")
    assert (await stats(queue)).workers == 2
    closed, crashed = await consumer(elsewhere), await consumer(elsewhere)
    assert (await stats(queue)).workers == 4
    await closed.close()
    await harness.crash(crashed)
    assert (await stats(queue)).workers == 2


async def test_oldest_is_the_publish_time_of_the_oldest_unfinished_delivery(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("scheduled", published_at=1.0, due_at=queue.time() + 60)])
    assert (await stats(queue)).oldest is None
    await queue.publish([message("b", published_at=20.5), message("a", published_at=10.25)])
    assert (await stats(queue)).oldest == 10.25
    first, second = await fetch(worker)
    assert (await stats(queue)).oldest == 10.25
    await worker.settle([end(second, Outcome.PARK)])
    assert (await stats(queue)).oldest == 10.25
    await worker.unpark({"work": ["Happened"]})
    await worker.settle([end(it) for it in await fetch(worker)])
    assert (await stats(queue)).oldest == 20.5
    await worker.settle([end(first, Outcome.DEAD)])
    assert (await stats(queue)).oldest is None


async def test_all_processes_get_the_same_stats(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    await start(harness, queue, names=("first", "second"))
    await queue.publish([message("a")])
    assert await queue.stats() == await elsewhere.stats()
