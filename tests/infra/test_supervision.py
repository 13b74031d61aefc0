"""Supervision of background tasks: restarts, backoff and guarded blocks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.clock import FakeClock
from infra.supervision import BackgroundTaskFailed, Supervisor


class Unreachable(Exception):
    pass


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def supervisor(clock: FakeClock) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(clock, transient=(Unreachable,), max_failures=4)
    yield supervisor
    await supervisor.close()


class FailingTask:
    """A task that raises each of `errors` in turn, and then waits until it is stopped."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()


async def test_failed_task_is_logged_and_restarted_with_growing_delays(
    clock: FakeClock, supervisor: Supervisor
) -> None:
    work = FailingTask(ValueError("a"), ExceptionGroup("b", [OSError("c")]), asyncio.CancelledError())
    with capture_logs() as logs:
        supervisor.start("relay", work.run)
        await clock.settle()
        assert [(it["event"], it["task"], it["retry_in"]) for it in logs] == [("background task failed", "relay", 0.1)]
        assert "ValueError: a" in logs[0]["exception"]
        await clock.advance(0.05)
        assert work.runs == 1
        await clock.advance(10)
    assert work.runs == 4
    assert [it["retry_in"] for it in logs] == [0.1, 0.2, 0.4]


async def test_task_that_raises_generator_exit_is_restarted(clock: FakeClock, supervisor: Supervisor) -> None:
    work = FailingTask(GeneratorExit(), GeneratorExit())
    task = supervisor.start("relay", work.run)
    await clock.advance(10)
    assert (work.runs, task.running) == (3, True)
    assert supervisor.states()[0].failures_total == 2


async def test_failure_to_write_the_log_ends_no_task(clock: FakeClock, supervisor: Supervisor) -> None:
    def disk_is_full(*_: object) -> MutableMapping[str, Any]:
        raise OSError("no space left on device")

    work = FailingTask(ValueError("a"), Unreachable("b"))
    with capture_logs(processors=[disk_is_full]):
        task = supervisor.start("relay", work.run)
        await clock.advance(10)
        task.succeeded()
    assert (work.runs, task.running) == (3, True)
    assert supervisor.states()[0].failures_total == 2


async def test_state_shows_failures_until_progress(clock: FakeClock, supervisor: Supervisor) -> None:
    work = FailingTask(ValueError("a"), ValueError("b"))
    task = supervisor.start("relay", work.run)
    await clock.settle()
    [state] = supervisor.failing
    assert (state.name, state.failures, state.error) == ("relay", 1, "ValueError: a")
    await clock.advance(1)
    assert supervisor.failing[0].failures == 2
    task.succeeded()
    assert supervisor.failing == []
    [state] = supervisor.states()
    assert (state.running, state.failures, state.failures_total, state.error) == (1, 0, 2, "")


async def test_attempt_that_runs_for_a_minute_is_progress(clock: FakeClock, supervisor: Supervisor) -> None:
    supervisor.start("relay", FailingTask(ValueError("a")).run)
    await clock.advance(59)
    assert [it.failures for it in supervisor.failing] == [1]
    await clock.advance(2)
    assert supervisor.failing == []


async def test_too_many_failures_in_a_row_cancel_the_guarded_block_and_raise(
    clock: FakeClock, supervisor: Supervisor
) -> None:
    stopped_orderly = False

    async def process() -> None:
        nonlocal stopped_orderly
        async with supervisor.guard():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                stopped_orderly = True

    running = asyncio.create_task(process())
    watching = asyncio.create_task(supervisor.watch())
    work = FailingTask(*(ValueError("no") for _ in range(4)))
    supervisor.start("relay", work.run)
    await clock.advance(0.65)
    assert not running.done()
    await clock.advance(1)
    for task in (running, watching):
        with pytest.raises(BackgroundTaskFailed, match=r"^the background task 'relay' failed 4 times in a row: Val"):
            await task
    assert stopped_orderly
    with pytest.raises(BackgroundTaskFailed):
        async with supervisor.guard():
            raise AssertionError("a supervisor that gave up guards nothing more")


async def test_cancelling_a_guarded_block_is_a_plain_cancellation(supervisor: Supervisor) -> None:
    async def process() -> None:
        async with supervisor.guard():
            await asyncio.Event().wait()

    running = asyncio.create_task(process())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_guarded_block_that_ends_is_not_cancelled_a_second_time(supervisor: Supervisor) -> None:
    cancellations = 0

    async def process() -> None:
        nonlocal cancellations
        async with supervisor.guard():
            for _ in range(2):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancellations += 1
                    supervisor.end(SystemExit(3))
                    await asyncio.sleep(0)
                    raise

    running = asyncio.create_task(process())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancellations == 1


async def test_guarded_block_that_outlives_a_cancellation_is_still_interrupted(supervisor: Supervisor) -> None:
    async def process() -> None:
        async with supervisor.guard():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            supervisor.end(BackgroundTaskFailed("it gave up"))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            task.uncancel()
            await asyncio.Event().wait()

    with pytest.raises(BackgroundTaskFailed, match="it gave up"):
        await asyncio.wait_for(process(), 10)


async def test_transient_failures_never_cancel_the_guarded_block(clock: FakeClock, supervisor: Supervisor) -> None:
    work = FailingTask(*(Unreachable() for _ in range(50)), ExceptionGroup("both", [Unreachable(), Unreachable()]))
    supervisor.start("relay", work.run)
    async with supervisor.guard():
        await clock.advance(400)
    assert (work.runs, supervisor.failing) == (52, [])
    assert [it.failures_total for it in supervisor.states()] == [51]


async def test_failures_with_progress_in_between_never_cancel_the_guarded_block(
    clock: FakeClock, supervisor: Supervisor
) -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        task.succeeded()
        raise ValueError

    task = supervisor.start("relay", work)
    async with supervisor.guard():
        await clock.advance(10)
    assert runs > 90


async def test_task_cancelled_by_foreign_code_is_restarted(supervisor: Supervisor) -> None:
    runs = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            again.set()
        await asyncio.Event().wait()

    task = supervisor.start("relay", work)
    await asyncio.sleep(0)
    task._task.cancel()
    await again.wait()
    await task.stop()
    assert (task.done(), runs) == (True, 2)


async def test_error_without_printable_text_counts_as_a_failure(clock: FakeClock, supervisor: Supervisor) -> None:
    class Hostile(BaseException):
        def __str__(self) -> str:
            raise asyncio.CancelledError  # Pytest can show this one.

        __repr__ = __str__

    work = FailingTask(Hostile())
    with capture_logs() as logs:
        supervisor.start("relay", work.run)
        await clock.advance(1)
    assert work.runs == 2
    assert logs[0]["error"].startswith("Hostile: (its text cannot be shown")


async def test_close_waits_for_every_task(clock: FakeClock, supervisor: Supervisor) -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    for name in ("a", "b", "b"):
        supervisor.start(name, slow)
    await clock.settle()
    assert [(it.name, it.running) for it in supervisor.states()] == [("a", 1), ("b", 2)]
    await supervisor.close()
    assert (ended, [it.running for it in supervisor.states()]) == ([1, 1, 1], [0, 0])
