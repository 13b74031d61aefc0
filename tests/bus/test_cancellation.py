"""A worker that is cancelled at any await, repeatedly or with all other tasks, leaves no claim behind."""

import asyncio
import contextlib
from typing import Any

import pytest

from bus import BusOptions, Retry
from infra.mq import ClaimLimits, WorkerInfo
from tests.bus.events import Deposited, Ticked
from tests.bus.worker_harness import WorkerHarness

STEPS = range(1, 90, 3)


def slow_queue_calls(harness: WorkerHarness) -> None:
    """Make every call to the queue cancellable before and after its effect, as over a network."""
    join = harness.mq.consumer

    async def consumer(info: WorkerInfo, limits: ClaimLimits) -> Any:  # noqa: ANN401 - stands in for any
        await asyncio.sleep(0)
        joined = await join(info, limits)
        for name in ("fetch", "settle", "isolate", "recover", "unpark"):
            setattr(joined, name, slow(getattr(joined, name)))
        await asyncio.sleep(0)
        return joined

    def slow(call: Any) -> Any:  # noqa: ANN401 - as above
        async def called(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as above
            await asyncio.sleep(0)
            result = await call(*args, **options)
            await asyncio.sleep(0)
            return result

        return called

    harness.mq.consumer = consumer  # type: ignore[method-assign]  # slows down its calls


async def tidy() -> None:
    try:
        for _ in range(4):
            await asyncio.sleep(0)
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


async def hanging() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        raise ConnectionError("the cleanup failed")


class Work:
    """A worker with slow calls to the queue, and with handlers that end soon, hang, or are ordered."""

    def __init__(self) -> None:
        self.harness = WorkerHarness(BusOptions(grace=1))
        self.done: list[object] = []
        slow_queue_calls(self.harness)
        harness = self.harness
        harness.bus.add_async_listener(self.on_tick, name="ticks", retry=Retry(max_attempts=1), concurrency=3)
        harness.bus.add_async_ordered_listener(self.on_deposit, name="deposits", retry=Retry(max_attempts=1))

    async def on_tick(self, event: Ticked) -> None:
        await (hanging() if event.n % 4 == 3 else tidy())
        self.done.append(event)

    async def on_deposit(self, event: Deposited) -> None:
        await tidy()
        self.done.append(event)

    async def begin(self, steps: int) -> asyncio.Task[None]:
        """Publish 12 events for each listener, and let the worker run for `steps` turns of the event loop."""
        harness = self.harness
        await harness.mq.open()
        starting = asyncio.create_task(harness.bus.start())
        await harness.clock.advance(2)
        await starting
        await harness.bus.publish_many([Ticked(n) for n in range(12)])
        await harness.bus.publish_many([Deposited(account=f"{n % 3}", amount=n) for n in range(12)])
        worker = asyncio.create_task(harness.bus.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        return worker

    async def check(self, worker: asyncio.Task[None]) -> None:
        """Assert that no claim, failure or task is left, and that the worker was cancelled."""
        harness = self.harness
        await harness.clock.advance(10)
        assert worker.cancelled()
        for each in await harness.mq.stats():
            assert (each.in_flight, each.retrying, each.dead) == (0, 0, 0), each
            metrics = harness.bus.metrics.listeners[each.name]
            assert (metrics.failed, metrics.running) == (0, 0)
        await harness.bus.close()
        await harness.mq.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left


@pytest.mark.parametrize("steps", STEPS)
async def test_cancelled_worker_leaves_no_claim_and_counts_no_failure(steps: int) -> None:
    work = Work()
    worker = await work.begin(steps)
    worker.cancel()
    await work.check(worker)


@pytest.mark.parametrize("steps", STEPS)
async def test_repeatedly_cancelled_worker_leaves_no_claim_and_counts_no_failure(steps: int) -> None:
    work = Work()
    worker = await work.begin(steps)
    for _ in range(60):
        worker.cancel()
        await asyncio.sleep(0)
    await work.check(worker)


@pytest.mark.parametrize("steps", STEPS)
async def test_cancelling_every_task_leaves_no_claim_and_counts_no_failure(steps: int) -> None:
    work = Work()
    worker = await work.begin(steps)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await work.check(worker)


@pytest.mark.parametrize("steps", range(1, 12, 2))
async def test_cancelling_every_task_during_shutdown_leaves_no_claim_and_counts_no_failure(steps: int) -> None:
    work = Work()
    worker = await work.begin(30)
    worker.cancel()
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await work.check(worker)
