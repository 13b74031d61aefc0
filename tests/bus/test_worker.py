"""Tests of the worker on the memory driver, with a clock that the test advances."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from bus import BusOptions, Delivery, Discard, Retry, RetryLater
from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import ClaimLimits, Consumer, Message, QueueClosed, QueueUnavailable, Settlement, WorkerInfo
from infra.mq.drivers.memory.consumer import MemoryConsumer
from tests.bus.events import Deposited, Ticked, UserCreated, Withdrawn
from tests.bus.worker_harness import WorkerHarness

STEADY = Retry(max_attempts=4, min_delay=10, factor=2, jitter="none")


async def test_published_event_is_handled_at_once() -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l")
    async with harness.working():
        for n in range(300):
            await harness.bus.publish(Ticked(n))
        await harness.until(lambda: len(seen) == 300)
    assert sorted(seen) == list(range(300))
    assert harness.bus.metrics.listeners["l"].handled == 300


async def test_retries_of_one_listener_do_not_repeat_another_listener() -> None:
    harness = WorkerHarness()
    ran: list[str] = []

    async def good(event: UserCreated) -> None:
        ran.append("good")

    async def bad(event: UserCreated, delivery: Delivery) -> None:
        ran.append(f"bad {delivery.attempt}")
        if delivery.attempt < 4:
            raise ConnectionError("smtp is down")

    harness.bus.add_async_listener(good, name="good")
    harness.bus.add_async_listener(bad, name="bad", retry=STEADY)
    async with harness.working():
        await harness.bus.publish(UserCreated())
        await harness.clock.advance(9.9)
        assert sorted(ran) == ["bad 1", "good"]
        await harness.clock.advance(0.2)
        assert ran.count("bad 2") == 1
        await harness.clock.advance(20)
        await harness.clock.advance(40)
    assert sorted(ran) == ["bad 1", "bad 2", "bad 3", "bad 4", "good"]
    assert await harness.mq.dead_letters() == []


async def test_exhausted_delivery_becomes_a_dead_letter_that_retries_for_its_listener_only() -> None:
    harness = WorkerHarness()
    ran: list[str] = []
    broken = True

    async def good(event: UserCreated) -> None:
        ran.append("good")

    async def bad(event: UserCreated, delivery: Delivery) -> None:
        ran.append(f"bad {delivery.attempt}")
        if broken:
            raise ConnectionError("smtp is\ndown")

    harness.bus.add_async_listener(good, name="good")
    harness.bus.add_async_listener(bad, name="bad", retry=Retry(max_attempts=2, min_delay=1, jitter="none"))
    async with harness.working():
        await harness.bus.publish(UserCreated())
        await harness.clock.advance(60)
        [dead] = await harness.mq.dead_letters()
        assert (dead.subscription, dead.failures, dead.error) == ("bad", 2, "ConnectionError: smtp is down")
        assert "in bad" in dead.traceback
        broken = False
        assert await harness.mq.retry_dead([dead.id]) == 1
        await harness.until(lambda: ran.count("bad 1") == 2)
    assert ran.count("good") == 1


async def test_retry_blocks_only_its_own_key() -> None:
    harness = WorkerHarness()
    seen: list[tuple[str, int]] = []

    async def on_deposit(event: Deposited, delivery: Delivery) -> None:
        if (event.account, event.amount) == ("a", 2) and delivery.attempt == 1:
            raise ConnectionError
        seen.append((event.account, event.amount))

    harness.bus.add_async_ordered_listener(on_deposit, name="l", retry=STEADY)
    async with harness.working():
        for amount in (1, 2, 3):
            await harness.bus.publish_many([Deposited(account=key, amount=amount) for key in "ab"])
        await harness.clock.settle()
        assert [n for key, n in seen if key == "b"] == [1, 2, 3]
        assert [n for key, n in seen if key == "a"] == [1]
        await harness.clock.advance(10)
    assert [n for key, n in seen if key == "a"] == [1, 2, 3]


async def test_worker_with_a_lost_lease_starts_none_of_its_held_deliveries() -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_deposit(event: Deposited) -> None:
        seen.append(event.amount)
        harness.consumers[0].abandon()
        other = await harness.mq.consumer(WorkerInfo(id="other", subscriptions=frozenset({"l"})), CLAIM_LIMITS)
        await other.recover()
        assert len(await other.fetch({"l": 1}, wait=0)) == 1

    harness.bus.add_async_ordered_listener(on_deposit, name="l")
    async with harness.working():
        await harness.bus.publish_many([Deposited(account="a", amount=n) for n in (1, 2)])
        await harness.until(lambda: seen)
        await harness.clock.settle()
        assert seen == [1]


class LeaseTime:
    """Sets the monotonic time until which no other worker takes over the claims of a test's workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.valid_until = 10.0
        monkeypatch.setattr(MemoryConsumer, "valid_until", property(lambda _: self.valid_until))


async def test_expired_lease_cancels_ordered_handlers_and_starts_nothing_until_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness, lease = WorkerHarness(), LeaseTime(monkeypatch)
    seen: list[str] = []

    async def handle(name: str, attempt: int) -> None:
        seen.append(f"{name} {attempt}")
        try:
            await harness.clock.sleep(20)
        except asyncio.CancelledError:
            seen.append(f"{name} cancelled")
            raise
        seen.append(f"{name} done")

    async def on_deposit(event: Deposited, delivery: Delivery) -> None:
        await handle(f"deposit {event.amount}", delivery.attempt)

    async def on_tick(event: Ticked, delivery: Delivery) -> None:
        await handle(f"tick {event.n}", delivery.attempt)

    harness.bus.add_async_ordered_listener(on_deposit, name="ordered", timeout=None)
    harness.bus.add_async_listener(on_tick, name="unordered", timeout=None, concurrency=1)
    async with harness.working():
        lease.valid_until = 15.0
        await harness.bus.publish_many([Deposited(account="a", amount=1), Deposited(account="a", amount=2)])
        await harness.bus.publish_many([Ticked(1), Ticked(2)])
        await harness.clock.advance(5)
        assert seen == ["deposit 1 1", "tick 1 1"]
        await harness.clock.advance(9)
        assert seen[2:] == ["deposit 1 cancelled"]
        await harness.clock.advance(20)
        assert seen[3:] == ["tick 1 done"]
        lease.valid_until = 10_000.0
        await harness.clock.advance(1)
        assert sorted(seen[4:]) == ["deposit 1 1", "tick 2 1"]
        await harness.clock.advance(50)
        assert sorted(seen[6:]) == ["deposit 1 done", "deposit 2 1", "deposit 2 done", "tick 2 done"]
    assert len(harness.consumers) == 1


async def test_thread_running_past_the_lease_is_logged_and_its_result_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness, lease = WorkerHarness(), LeaseTime(monkeypatch)
    begun, finish = threading.Event(), threading.Event()
    seen: list[int] = []

    def on_deposit(event: Deposited) -> None:
        begun.set()
        finish.wait(10)
        seen.append(event.amount)

    harness.bus.add_async_ordered_listener(on_deposit, name="l")
    async with harness.working():
        await harness.bus.publish(Deposited(account="a", amount=1))
        await harness.until(begun.is_set)
        with capture_logs() as logs:
            await harness.clock.advance(12)
        assert [it["listener"] for it in logs if it["event"] == "ordered thread not cancelled"] == ["l"]
        finish.set()
        await harness.until(lambda: seen)
        lease.valid_until = 10_000.0
        await harness.clock.advance(1)
        assert [(it.in_flight, it.ready) for it in await harness.mq.stats()] == [(0, 0)]
    assert seen == [1]


async def test_thread_running_past_the_grace_period_keeps_its_ordering_key_claimed() -> None:
    harness = WorkerHarness(BusOptions(grace=1))
    begun, finish = threading.Event(), threading.Event()

    def on_deposit(event: Deposited) -> None:
        begun.set()
        finish.wait(10)

    harness.bus.add_async_ordered_listener(on_deposit, name="l")
    async with harness.working() as worker:
        await harness.bus.publish(Deposited(account="a", amount=1))
        await harness.until(begun.is_set)
        await harness.stop(worker)
        other = await harness.mq.consumer(WorkerInfo(id="other", subscriptions=frozenset({"l"})), CLAIM_LIMITS)
        assert await other.fetch({"l": 1}, wait=0) == []
        finish.set()


async def test_worker_cancelled_while_opening_its_consumer_closes_the_consumer() -> None:
    harness = WorkerHarness()
    joined, answer = asyncio.Event(), asyncio.Event()

    async def slow(info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        consumer = await harness._recorded(info, limits)
        joined.set()
        await answer.wait()
        return consumer

    async def on_tick(event: Ticked) -> None: ...

    harness.mq.consumer = slow  # type: ignore[method-assign,assignment]  # lets the test cancel the worker inside this call
    harness.bus.add_async_listener(on_tick, name="l")
    async with harness.working() as worker:
        await joined.wait()
        worker.cancel()
        await harness.clock.settle()
        answer.set()
        await harness.until(worker.done)
        assert [it.workers for it in await harness.mq.stats()] == [0]


async def test_ordered_listener_of_a_union_keeps_one_order_without_overlap() -> None:
    harness = WorkerHarness()
    seen: list[str] = []
    inside = 0

    async def on_money(event: Deposited | Withdrawn) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0)
        seen.append(f"{type(event).__name__} {event.amount}")
        inside -= 1

    harness.bus.add_async_ordered_listener(on_money, name="l")
    async with harness.working():
        for n in range(20):
            await harness.bus.publish(Deposited(account="a", amount=n) if n % 2 else Withdrawn(account="a", amount=n))
        await harness.until(lambda: len(seen) == 20)
    assert seen == [f"{'Deposited' if n % 2 else 'Withdrawn'} {n}" for n in range(20)]


async def test_on_exhausted_skip_continues_and_block_waits_for_unblock() -> None:
    harness = WorkerHarness()
    seen: dict[str, list[int]] = {"skip": [], "block": []}
    fixed = False

    def handler(mode: str) -> Callable[[Deposited], Awaitable[None]]:
        async def handle(event: Deposited) -> None:
            if event.amount == 1 and not fixed:
                raise ValueError("no")
            seen[mode].append(event.amount)

        return handle

    once = Retry(max_attempts=1)
    harness.bus.add_async_ordered_listener(handler("skip"), name="skip", retry=once, on_exhausted="skip")
    harness.bus.add_async_ordered_listener(handler("block"), name="block", retry=once, on_exhausted="block")
    async with harness.working():
        await harness.bus.publish_many([Deposited(account="a", amount=n) for n in (1, 2, 3)])
        await harness.clock.advance(60)
        assert seen == {"skip": [2, 3], "block": []}
        assert [each.blocked_keys for each in await harness.mq.stats() if each.name == "block"] == [
            {"a": "ValueError: no"}
        ]
        fixed = True
        await harness.mq.unblock("block", "a", skip=False)
        await harness.until(lambda: len(seen["block"]) == 3)
    assert seen["block"] == [1, 2, 3]


async def test_retry_later_counts_no_failure_and_discard_ends_the_delivery() -> None:
    harness = WorkerHarness()
    attempts: list[int] = []

    async def on_tick(event: Ticked, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) <= 20:
            raise RetryLater(30, "rate limited")
        raise Discard("not wanted")

    harness.bus.add_async_listener(on_tick, name="l", retry=Retry(max_attempts=2))
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(29)
        assert len(attempts) == 1
        await harness.clock.advance(1000)
    assert attempts == [1] * 21
    metrics = harness.bus.metrics.listeners["l"]
    assert (metrics.deferred, metrics.discarded, metrics.failed, metrics.dead) == (20, 1, 0, 0)


async def test_a_timed_out_handler_is_cancelled_and_retried() -> None:
    harness = WorkerHarness()
    ended: list[str] = []

    async def on_tick(event: Ticked, delivery: Delivery) -> None:
        try:
            if delivery.attempt == 1:
                await asyncio.Event().wait()
            ended.append("finished")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    harness.bus.add_async_listener(on_tick, name="l", timeout=20, retry=STEADY)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(19)
        assert ended == []
        await harness.clock.advance(7)
        assert ended == ["cancelled"]
        await harness.clock.advance(10)
    assert ended == ["cancelled", "finished"]
    assert harness.bus.metrics.listeners["l"].timed_out == 1


async def test_handler_that_ignores_its_timeout_keeps_its_key_and_never_overlaps() -> None:
    harness = WorkerHarness()
    running = 0
    most = 0
    seen: list[int] = []
    go_on = asyncio.Event()

    async def stubborn(event: Deposited) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()
        seen.append(event.amount)
        running -= 1

    harness.bus.add_async_ordered_listener(stubborn, name="l", timeout=5, retry=STEADY)
    async with harness.working():
        await harness.bus.publish_many([Deposited(account="a", amount=n) for n in (1, 2)])
        await harness.clock.advance(500)
        assert seen == []
        go_on.set()
        await harness.until(lambda: len(seen) == 2)
    assert (seen, most) == ([1, 2], 1)


async def test_handler_that_raises_cancelled_error_fails_and_the_worker_continues() -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        if event.n == 1:
            raise asyncio.CancelledError
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l", retry=Retry(max_attempts=1))
    async with harness.working():
        await harness.bus.publish_many([Ticked(1), Ticked(2)])
        await harness.until(lambda: seen == [2])
        await harness.clock.advance(1)
        [dead] = await harness.mq.dead_letters()
    assert dead.error.startswith("HandlerCancelled")


async def test_slow_listener_does_not_delay_other_listeners() -> None:
    harness = WorkerHarness(BusOptions(prefetch=10, concurrency=2))
    seen: list[int] = []
    never = asyncio.Event()

    async def slow(event: Ticked) -> None:
        await never.wait()

    async def quick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(slow, name="slow", timeout=None)
    harness.bus.add_async_listener(quick, name="quick")
    async with harness.working():
        for n in range(500):
            await harness.bus.publish(Ticked(n))
        await harness.until(lambda: len(seen) == 500)
        stats = {each.name: each for each in await harness.mq.stats()}
        assert stats["slow"].in_flight <= 12
        never.set()


async def test_worker_of_a_slow_listener_leaves_deliveries_to_other_workers() -> None:
    harness = WorkerHarness(BusOptions(concurrency=16))

    async def slow(event: Ticked) -> None:
        await harness.clock.sleep(1)

    harness.bus.add_async_listener(slow, name="slow")
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(300)])
        for _ in range(10):
            await harness.clock.advance(1)
            [stats] = await harness.mq.stats()
            assert stats.in_flight <= 16 + 4
        [stats] = await harness.mq.stats()
        assert stats.ready <= 300 - 160


@pytest.mark.parametrize("running", range(1, 8))
async def test_hanging_handlers_do_not_block_free_slots(running: int) -> None:
    harness = WorkerHarness(BusOptions(concurrency=8))
    begun: list[int] = []
    never = asyncio.Event()

    async def hang(event: Ticked) -> None:
        begun.append(event.n)
        await never.wait()

    harness.bus.add_async_listener(hang, name="l", timeout=None)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(running)])
        await harness.until(lambda: len(begun) == running)
        await harness.bus.publish_many([Ticked(n) for n in range(running, 8)])
        await harness.until(lambda: len(begun) == 8)
        never.set()


async def test_concurrency_limits_simultaneous_handlers() -> None:
    harness = WorkerHarness()
    running = most = 0

    async def on_tick(event: Ticked) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    harness.bus.add_async_listener(on_tick, name="l", concurrency=3)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(200)])
        await harness.until(lambda: harness.bus.metrics.listeners["l"].handled == 200)
    assert most == 3


async def test_shutdown_finishes_or_releases_deliveries_without_counting_attempts() -> None:
    harness = WorkerHarness(BusOptions(grace=30))
    finished: list[int] = []

    async def on_tick(event: Ticked, delivery: Delivery) -> None:
        assert delivery.attempt == 1
        await harness.clock.sleep(10 if event.n == 0 else 1000)
        finished.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l", concurrency=2, timeout=None)
    async with harness.working() as worker:
        await harness.bus.publish_many([Ticked(n) for n in range(50)])
        await harness.clock.settle()
        worker.cancel()
        await harness.clock.advance(1)
        [stats] = await harness.mq.stats()
        assert stats.in_flight == 2
        await harness.clock.advance(15)
        assert finished == [0]
        await harness.clock.advance(20)
        assert worker.done()
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.in_flight, stats.retrying) == (49, 0, 0)
    again: list[int] = []
    successor = harness.another_bus()

    async def attempts(event: Ticked, delivery: Delivery) -> None:
        again.append(delivery.attempt)

    successor.add_async_listener(attempts, name="l")
    async with harness.working(successor):
        await harness.until(lambda: len(again) == 49)
    assert set(again) == {1}


async def test_a_plain_function_runs_in_a_thread() -> None:
    harness = WorkerHarness()
    seen: list[str] = []

    def on_tick(event: Ticked, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise StopIteration
        seen.append(threading.current_thread().name)

    harness.bus.add_async_listener(on_tick, name="l", retry=Retry(min_delay=0, max_delay=0))
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.until(lambda: seen)
    assert seen[0].startswith("bus handler")


async def test_event_unknown_to_a_worker_is_parked_for_newer_workers() -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def new_code(event: Deposited | Withdrawn, delivery: Delivery) -> None:
        seen.append(delivery.attempt)

    async def old_code(event: Deposited) -> None:
        raise AssertionError("this listener does not handle the event")

    new = harness.another_bus()
    new.add_async_ordered_listener(new_code, name="l")
    await harness.mq.open()
    starting = asyncio.create_task(new.start())
    await harness.clock.advance(2)
    await starting
    old = harness.another_bus()
    old.add_async_ordered_listener(old_code, name="l")
    async with harness.working(old):
        await new.publish(Withdrawn(account="a", amount=1))
        await harness.clock.advance(30)
        [stats] = await harness.mq.stats()
        assert (stats.parked, stats.dead) == (1, 0)
    worker = asyncio.create_task(new.run())
    await harness.clock.advance(5)
    assert seen == [1]
    await harness.stop(worker)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    account: str

    def ordering_key(self) -> str:
        return self.account


async def test_worker_names_events_of_an_ordered_union_without_ordering_scope() -> None:
    harness = WorkerHarness()

    async def mixed(event: Deposited | Renamed) -> None: ...

    async def scoped(event: Deposited | Withdrawn) -> None: ...

    async def single(event: Renamed) -> None: ...

    harness.bus.add_async_ordered_listener(mixed, name="mixed")
    harness.bus.add_async_ordered_listener(scoped, name="scoped")
    harness.bus.add_async_ordered_listener(single, name="single")
    harness.bus.add_async_listener(mixed, name="unordered")
    with capture_logs() as logs:
        async with harness.working():
            await harness.bus.publish(Renamed(account="a"))
    assert [line for line in logs if line["event"] == "ordering scope undeclared"] == [
        {"event": "ordering scope undeclared", "log_level": "warning", "listener": "mixed", "events": ["Renamed"]}
    ]


async def test_undecodable_message_is_retried_and_ends_as_a_dead_letter() -> None:
    harness = WorkerHarness()

    async def on_tick(event: Ticked) -> None:
        raise AssertionError("there is no event")

    harness.bus.add_async_listener(on_tick, name="l", retry=Retry(max_attempts=3, min_delay=1, jitter="none"))
    async with harness.working():
        await harness.mq.publish([Message(id="m", event="clock.ticked", body=b"\xc1garbage", published_at=0.0)])
        await harness.clock.advance(60)
        [dead] = await harness.mq.dead_letters()
    assert (dead.body, dead.failures) == (b"\xc1garbage", 3)
    assert "not a message of this bus" in dead.error


async def test_message_that_kills_its_process_repeatedly_becomes_a_dead_letter() -> None:
    harness = WorkerHarness()
    handled: list[int] = []
    alone: list[bool] = []
    running: set[int] = set()
    die: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_tick(event: Ticked, delivery: Delivery) -> None:
        running.add(event.n)
        if event.n == 13:
            alone.append(len(running) == 1)
            if not die.done():
                die.set_result(None)
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        running.discard(event.n)
        handled.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l", timeout=None)
    await harness.mq.open()
    starting = asyncio.create_task(harness.bus.start())
    await harness.clock.advance(2)
    await starting
    await harness.bus.publish_many([Ticked(n) for n in range(30)])
    deaths = 0
    for _ in range(10):
        die = asyncio.get_running_loop().create_future()
        running.clear()
        worker = asyncio.create_task(harness.bus.run())
        for _ in range(60):
            await harness.clock.advance(1)
            if die.done():
                break
        if not die.done():
            await harness.stop(worker)
            break
        deaths += 1
        await kill(harness, worker)
    assert sorted(set(handled)) == [n for n in range(30) if n != 13]
    [dead] = await harness.mq.dead_letters()
    assert (dead.failures, dead.crashes) == (0, 3)
    assert "died 3 times" in dead.error
    assert deaths == 5
    assert alone[2:] == [True, True, True]


async def kill(harness: WorkerHarness, worker: asyncio.Task[None]) -> None:
    """End a worker as SIGKILL would: it releases and settles nothing."""

    async def unreachable(_: object) -> list[Settlement]:
        raise QueueClosed("the process is dead")

    for consumer in harness.consumers:
        consumer.abandon()
        consumer.settle = unreachable  # type: ignore[method-assign,assignment]  # a dead process settles nothing
    worker.cancel()
    await harness.clock.advance(100)
    with contextlib.suppress(asyncio.CancelledError):
        await worker


async def test_worker_that_loses_its_lease_drops_results_and_starts_a_new_incarnation() -> None:
    harness = WorkerHarness()
    attempts: list[int] = []
    release = asyncio.Event()

    async def on_deposit(event: Deposited, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            await release.wait()

    harness.bus.add_async_ordered_listener(on_deposit, name="l", timeout=None)
    async with harness.working():
        await harness.bus.publish(Deposited(account="a", amount=1))
        await harness.clock.settle()
        [first] = harness.consumers
        first.abandon()
        await harness.clock.advance(60)
        assert attempts == [1, 1]
        [second] = [each for each in harness.consumers if not each.lost]
        assert second.info.id != first.info.id


async def test_failed_settlements_are_retried_without_running_the_handler_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l")
    async with harness.working():
        [consumer] = harness.consumers
        settle = consumer.settle
        refusals = 3

        async def flaky(settlements: Any) -> Any:  # noqa: ANN401 - stands in for any
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise QueueUnavailable("unavailable")
            return await settle(settlements)

        monkeypatch.setattr(consumer, "settle", flaky)
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(10)
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.in_flight) == (0, 0)
    assert seen == [1]


async def test_worker_survives_an_unreachable_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l")
    join = harness.mq.consumer
    refusals = 4

    async def flaky(info: WorkerInfo, limits: ClaimLimits) -> Any:  # noqa: ANN401 - stands in for any
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise QueueUnavailable("not yet")
        return await join(info, limits)

    monkeypatch.setattr(harness.mq, "consumer", flaky)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(30)
    assert seen == [1]
