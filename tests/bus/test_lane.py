"""Tests of how many claims a worker fetches for a listener, and when."""

from bus import Bus, BusOptions
from bus.metrics import ListenerMetrics
from bus.worker.lane import Lane
from infra.clock import FakeClock
from infra.mq import Claim
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Ticked
from tests.bus.worker_harness import WorkerHarness

CLAIM = Claim(subscription="l", deliveries=[])


def new_lane() -> Lane:
    clock = FakeClock()
    bus = Bus(MemoryQueue(clock=clock, lease=float("inf")), clock=clock)

    async def on_tick(event: Ticked) -> None: ...

    bus.add_async_listener(on_tick, name="l", concurrency=16)
    return Lane(bus.listeners[0], ListenerMetrics())


def test_first_fetch_asks_for_free_slots_only() -> None:
    assert new_lane().want(100) == 16


def test_quick_listener_fetches_the_next_batch_while_one_waits() -> None:
    lane = new_lane()
    lane.done_since_fetch = 100
    assert lane.want(100) == 116
    lane.waiting.extend([CLAIM] * 116)
    assert lane.want(84) == 84
    lane.waiting.extend([CLAIM] * 84)
    assert lane.want(0) == 0


def test_pace_is_forgotten_after_two_fetches_without_finished_claims() -> None:
    lane = new_lane()
    lane.done_since_fetch = 100
    assert [lane.want(100) for _ in range(3)] == [116, 116, 16]


def test_slow_listener_holds_no_more_than_its_pace_justifies() -> None:
    lane = new_lane()
    lane.done_since_fetch = 2
    lane.waiting.extend([CLAIM] * 16)
    assert lane.want(100) == 8
    lane.waiting.extend([CLAIM] * 8)
    assert lane.want(100) == 0


def test_claims_ahead_are_bounded_by_the_duration_of_handlers() -> None:
    lane = new_lane()
    lane.done_since_fetch, lane.metrics.busy_seconds = 16, 16.0
    assert lane.want(100) == 16 + 4
    lane.done_since_fetch, lane.metrics.busy_seconds = 16, 18.0
    assert lane.want(100) == 16 + 32
    assert lane.want(100) == 16 + 32
    lane.done_since_fetch, lane.metrics.busy_seconds = 1, 78.0
    assert lane.want(100) == 16


def test_lane_is_starved_once_half_of_its_waiting_claims_have_started() -> None:
    lane = new_lane()
    lane.waiting.extend([CLAIM] * 100)
    assert lane.want(0) == 0
    for _ in range(49):
        lane.take()
    assert not lane.is_starved
    lane.take()
    assert lane.is_starved


async def test_fetch_asks_for_at_most_half_of_the_prefetch_ahead() -> None:
    harness = WorkerHarness(BusOptions(prefetch=100, concurrency=16))
    asked: list[int] = []
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l")
    async with harness.working():
        [consumer] = harness.consumers
        fetch = consumer.fetch

        async def recorded(wants: dict[str, int], *, wait: float) -> list[Claim]:
            asked.append(sum(wants.values()))
            return await fetch(wants, wait=wait)

        consumer.fetch = recorded  # type: ignore[method-assign,assignment]  # records what is asked for
        await harness.bus.publish_many([Ticked(n) for n in range(1000)])
        await harness.until(lambda: len(seen) == 1000)
    assert max(asked) == 16 + 50
