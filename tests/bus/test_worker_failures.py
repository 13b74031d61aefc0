"""A worker continues after any error of its queue, and ends when it is cancelled during a failure."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bus import Retry
from infra.mq import ClaimLimits, WorkerInfo
from tests.bus.events import Ticked
from tests.bus.worker_harness import WorkerHarness
from tests.hostile_errors import PanicException

ERRORS: list[Callable[[], BaseException]] = [
    KeyError,
    RecursionError,
    PanicException,
    asyncio.CancelledError,
    GeneratorExit,
    lambda: BaseExceptionGroup("g", [asyncio.CancelledError()]),
]
NAMES = ["error", "recursion", "panic", "cancelled elsewhere", "generator exit", "group"]


def failing(call: Any, make: Callable[[], BaseException], times: int) -> Any:  # noqa: ANN401 - stands in for any call
    left = times

    async def called(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as above
        nonlocal left
        left -= 1
        if left >= 0:
            raise make()
        return await call(*args, **options)

    return called


@pytest.mark.parametrize("make", ERRORS, ids=NAMES)
@pytest.mark.parametrize("name", ["consumer", "fetch", "settle", "recover", "unpark"])
async def test_worker_continues_after_any_error_of_the_queue(name: str, make: Callable[[], BaseException]) -> None:
    harness = WorkerHarness()
    join = harness.mq.consumer
    done: list[int] = []

    async def consumer(info: WorkerInfo, limits: ClaimLimits) -> Any:  # noqa: ANN401 - stands in for any
        joined = await join(info, limits)
        setattr(joined, name, failing(getattr(joined, name), make, 3))
        return joined

    harness.mq.consumer = failing(join, make, 3) if name == "consumer" else consumer  # type: ignore[method-assign]

    async def handler(event: Ticked) -> None:
        done.append(event.n)

    harness.bus.add_async_listener(handler, name="l", retry=Retry(max_attempts=1))
    async with harness.working() as worker:
        await harness.bus.publish_many([Ticked(n) for n in range(3)])
        await harness.clock.advance(60)
        assert not worker.done()
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.in_flight, stats.retrying, stats.dead) == (0, 0, 0, 0)
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("steps", range(12))
async def test_failing_worker_still_ends_when_cancelled(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = WorkerHarness()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "bus heartbeat":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def handler(event: Ticked) -> None: ...

    monkeypatch.setattr(threading.Thread, "start", refuse)
    harness.bus.add_async_listener(handler, name="l")
    await harness.mq.open()
    starting = asyncio.create_task(harness.bus.start())
    await harness.clock.advance(2)
    await starting
    worker = asyncio.create_task(harness.bus.run())
    for _ in range(steps):
        await asyncio.sleep(0)
    worker.cancel()
    await harness.clock.advance(5)
    assert worker.cancelled()
    await harness.bus.close()
    await harness.mq.close()
