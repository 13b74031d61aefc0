"""A cancellation that a handler causes counts no failure for later deliveries of its slot, nor for other slots."""

import asyncio
from collections.abc import Callable

import pytest

from bus import BusOptions, Retry
from tests.bus.events import Deposited, Ticked
from tests.bus.worker_harness import WorkerHarness

ONCE = Retry(max_attempts=1)
LAST = 40
HOSTILE = 20
"""Late enough that the worker holds many claims, and one slot runs several of them in turn."""


def own_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def cancel_soon() -> None:
    asyncio.get_running_loop().call_soon(own_task().cancel)


def cancel_later() -> None:
    asyncio.get_running_loop().call_later(0.001, own_task().cancel)


TASKS: set[asyncio.Task[None]] = set()


def leave_a_watching_task() -> None:
    watched = own_task()

    async def watch() -> None:
        await asyncio.sleep(0)
        watched.cancel()

    TASKS.add(asyncio.create_task(watch()))


def leave_a_watching_task_inside_a_correlation() -> None:
    with HARNESSES[-1].bus.correlation("request"):
        leave_a_watching_task()


HARNESSES: list[WorkerHarness] = []


@pytest.mark.parametrize(
    "leave", [cancel_soon, cancel_later, leave_a_watching_task, leave_a_watching_task_inside_a_correlation]
)
@pytest.mark.parametrize("ordered", [False, True])
async def test_late_cancellation_by_a_handler_does_not_reach_later_deliveries(
    leave: Callable[[], None], ordered: bool
) -> None:
    harness = WorkerHarness()
    HARNESSES.append(harness)
    done: list[int] = []
    pending = asyncio.Event()

    async def handler(event: Deposited) -> None:
        if event.amount == HOSTILE:
            leave()
            return
        if event.amount == HOSTILE + 1:
            asyncio.get_running_loop().call_later(0.005, pending.set)
            await pending.wait()
        await asyncio.sleep(0)
        done.append(event.amount)

    if ordered:
        harness.bus.add_async_ordered_listener(handler, name="l", retry=ONCE)
    else:
        harness.bus.add_async_listener(handler, name="l", retry=ONCE, concurrency=1)
    async with harness.working():
        await harness.bus.publish_many([Deposited(account="a", amount=n) for n in range(LAST)])
        await pending.wait()
        await harness.until(lambda: len(done) == LAST - 1)
        assert await harness.mq.dead_letters() == []
    assert done == [n for n in range(LAST) if n != HOSTILE]
    TASKS.clear()


async def test_handlers_cancelled_by_another_handler_count_no_failure() -> None:
    harness = WorkerHarness()
    attempts: list[int] = []
    done: list[int] = []
    gate = asyncio.Event()

    async def handler(event: Ticked) -> None:
        attempts.append(event.n)
        if event.n == 0:
            for slot_task in [it for it in asyncio.all_tasks() if type(it).__name__ == "SlotTask"]:
                if slot_task is not asyncio.current_task():
                    slot_task.cancel()
        elif len(attempts) <= 8:
            await gate.wait()
        done.append(event.n)

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, concurrency=8, timeout=None)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(1, 6)])
        await harness.until(lambda: len(attempts) == 5)
        await harness.bus.publish(Ticked(0))
        await harness.until(lambda: 0 in done)
        gate.set()
        for _ in range(3):
            await harness.clock.advance(1)
        assert await harness.mq.dead_letters() == []
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    assert harness.bus.metrics.listeners["l"].failed == 0


async def test_slot_cancelled_before_its_start_leaves_no_claim_waiting() -> None:
    harness = WorkerHarness()
    done: list[int] = []

    async def handler(event: Ticked) -> None:
        done.append(event.n)

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    async with harness.working():
        create = harness.consumers[0].fetch

        async def fetch(*args: object, **options: object) -> object:
            claims = await create(*args, **options)  # type: ignore[arg-type]  # passed on unchanged
            asyncio.get_running_loop().call_soon(cancel_all_slots)
            return claims

        def cancel_all_slots() -> None:
            for each in asyncio.all_tasks():
                if type(each).__name__ == "SlotTask" and not done:
                    each.cancel()

        harness.consumers[0].fetch = fetch  # type: ignore[method-assign,assignment]  # cancels the slots after each fetch
        await harness.bus.publish_many([Ticked(n) for n in range(3)])
        await harness.until(lambda: len(done) == 3)
    assert sorted(done) == [0, 1, 2]


async def test_timeouts_and_shutdown_reach_workers_started_inside_a_handler() -> None:
    outer, inner = WorkerHarness(), WorkerHarness(BusOptions(grace=1))
    ended: list[str] = []

    async def hang(event: Ticked) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("hang")

    async def work(event: Ticked) -> None:
        async with inner.working():
            await inner.bus.publish(Ticked(1))
            await inner.clock.advance(10)
            assert [it.failures for it in await inner.mq.dead_letters()] == [1]
        ended.append("work")

    inner.bus.add_async_listener(hang, name="l", retry=ONCE, timeout=5)
    outer.bus.add_async_listener(work, name="l", retry=ONCE, timeout=None)
    async with outer.working():
        await outer.bus.publish(Ticked(1))
        await outer.until(lambda: "work" in ended)
        assert await outer.mq.dead_letters() == []
    assert ended == ["hang", "work"]
