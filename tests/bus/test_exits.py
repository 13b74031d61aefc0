"""An exit in a handler shuts the process down with its exit code, and counts as a crash of its delivery alone."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bus import Bus, BusOptions, Retry
from infra.clock import SystemClock
from infra.mq import SubscriptionStats
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Ticked
from tests.bus.worker_harness import WorkerHarness


class Process:
    """Successive runs of a bus on one queue, each in its own event loop as in its own process."""

    def __init__(self) -> None:
        self.mq = MemoryQueue(clock=SystemClock(), lease=float("inf"))
        self.handled: list[int] = []
        self.runs = 0
        self.stats: SubscriptionStats | None = None

    def run(self, handler: Callable[[Ticked], Coroutine[Any, Any, None]], *events: Ticked) -> BaseException | None:
        """Publish `events` and run the worker until the process ends; return the exception, or None after 20 s."""
        try:
            asyncio.run(self._main(handler, events))
        except (SystemExit, KeyboardInterrupt) as ended:
            return ended
        return None

    async def _main(self, handler: Callable[[Ticked], Coroutine[Any, Any, None]], events: tuple[Ticked, ...]) -> None:
        self.runs += 1
        await self.mq.open()
        bus = Bus(self.mq, options=BusOptions(grace=5, recover_every=0.02))
        bus.add_async_listener(handler, name="l", retry=Retry(max_attempts=1), timeout=None)
        await bus.start()
        await bus.publish_many(events)
        try:
            async with asyncio.timeout(20):
                await bus.run()
        finally:
            [self.stats] = await self.mq.stats()
            await self.mq.close()


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda: sys.exit(3), 3),
        (lambda: (_ for _ in ()).throw(SystemExit("text")), "text"),
        (lambda: (_ for _ in ()).throw(BaseExceptionGroup("g", [ValueError(), SystemExit(4)])), 4),
    ],
    ids=["number", "text", "in a group"],
)
def test_exit_in_a_handler_ends_the_process_after_running_handlers_finish(
    leave: Callable[[], object], code: object
) -> None:
    process = Process()
    all_begun = asyncio.Barrier(5)

    async def handler(event: Ticked) -> None:
        await all_begun.wait()
        if event.n == 0:
            leave()
        await asyncio.sleep(0.2)
        process.handled.append(event.n)

    ended = process.run(handler, *(Ticked(n) for n in range(5)))
    assert isinstance(ended, SystemExit)
    assert ended.code == code
    assert sorted(process.handled) == [1, 2, 3, 4]
    assert process.stats is not None
    # The delivery that exited stays claimed, so that recovery counts its crash.
    assert (process.stats.in_flight, process.stats.ready, process.stats.dead) == (1, 0, 0)


def test_exit_in_a_handlers_task_loses_no_delivery() -> None:
    process = Process()

    async def leave() -> None:
        sys.exit(3)

    async def handler(event: Ticked) -> None:
        if event.n == 0:
            async with asyncio.TaskGroup() as group:
                group.create_task(leave())
        await asyncio.sleep(10)

    ended = process.run(handler, *(Ticked(n) for n in range(5)))
    assert isinstance(ended, SystemExit)
    assert ended.code == 3
    assert process.stats is not None
    assert process.stats.ready + process.stats.in_flight == 5
    assert process.stats.in_flight <= 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_delivery_that_exits_repeatedly_becomes_a_dead_letter(error: BaseException) -> None:
    process = Process()

    async def handler(event: Ticked) -> None:
        if event.n == 0:
            raise error
        process.handled.append(event.n)

    events = [Ticked(n) for n in range(3)]
    while process.runs < 5:
        assert isinstance(process.run(handler, *events), type(error))
        events = []

    async def last() -> None:
        await process.mq.open()
        bus = Bus(process.mq, options=BusOptions(recover_every=0.02))
        bus.add_async_listener(handler, name="l")
        await bus.start()
        worker = asyncio.create_task(bus.run())
        async with asyncio.timeout(20):
            while not await process.mq.dead_letters():  # noqa: ASYNC110 - the queue has no event to wait for
                await asyncio.sleep(0.01)
        worker.cancel()
        await asyncio.wait([worker])
        [dead] = await process.mq.dead_letters()
        assert (dead.failures, dead.crashes) == (0, 3)

    asyncio.run(last())
    assert sorted(process.handled) == [1, 2]


async def test_exit_of_a_handler_during_shutdown_releases_its_delivery() -> None:
    harness = WorkerHarness(BusOptions(grace=1))

    async def handler(event: Ticked) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            sys.exit(3)

    harness.bus.add_async_listener(handler, name="l", timeout=None)
    async with harness.working() as worker:
        await harness.bus.publish(Ticked(1))
        await harness.clock.settle()
        await harness.stop(worker)
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.in_flight) == (1, 0)


async def test_exit_of_a_handler_during_shutdown_keeps_the_grace_period() -> None:
    harness = WorkerHarness(BusOptions(grace=10))
    finished: list[int] = []

    async def handler(event: Ticked) -> None:
        await harness.clock.sleep(event.n)
        if event.n == 2:
            sys.exit(3)
        finished.append(event.n)

    harness.bus.add_async_listener(handler, name="l", timeout=None)
    async with harness.working() as worker:
        await harness.bus.publish_many([Ticked(2), Ticked(5)])
        await harness.clock.settle()
        await harness.stop(worker)
    assert finished == [5]


async def test_no_delivery_begins_once_the_worker_is_cancelled() -> None:
    harness, began, workers = WorkerHarness(), list[int](), list[asyncio.Task[None]]()

    async def handler(event: Ticked) -> None:
        began.append(event.n)
        workers[0].cancel()  # the worker's task receives it after this handler

    harness.bus.add_async_listener(handler, name="l")
    async with harness.working() as worker:
        workers.append(worker)
        await harness.bus.publish_many([Ticked(1), Ticked(2), Ticked(3)])
        await harness.until(worker.done)
        [stats] = await harness.mq.stats()
    assert (began, stats.ready, stats.retrying) == ([1], 2, 0)
