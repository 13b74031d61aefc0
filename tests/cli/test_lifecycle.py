"""The lifecycle of runnables: common start and shutdown, failures and signals."""

import asyncio
import os
import signal

import pytest

from beneath.runtime.lifecycle import Lifecycle, RunnableEnded, stop_signals
from infra.clock import FakeClock


class Worker:
    def __init__(self, name: str = "worker", *, fails: Exception | None = None, ends: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.ends = ends
        self.stopped = False

    async def run(self) -> None:
        if self.fails:
            raise self.fails
        try:
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.stopped = True


class Stubborn(Worker):
    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


class Slow(Worker):
    def __init__(self, clock: FakeClock, seconds: float) -> None:
        super().__init__("slow")
        self.clock = clock
        self.seconds = seconds

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self.clock.sleep(self.seconds)
            self.stopped = True


async def test_stop_ends_every_runnable_and_returns() -> None:
    lifecycle, workers = Lifecycle(grace=5, clock=FakeClock()), [Worker("a"), Worker("b")]
    running = asyncio.create_task(lifecycle.run(workers))
    await FakeClock.settle()
    assert not running.done()
    lifecycle.stop()
    await running
    assert [each.stopped for each in workers] == [True, True]


async def test_first_failure_stops_every_runnable_and_is_raised() -> None:
    other = Worker("other")
    with pytest.raises(OSError, match="broken"):
        await Lifecycle(grace=5, clock=FakeClock()).run([other, Worker(fails=OSError("broken"))])
    assert other.stopped


async def test_unrequested_end_of_a_runnable_stops_the_others_with_an_error() -> None:
    other = Worker("other")
    with pytest.raises(RunnableEnded, match="worker ended before a shutdown was requested"):
        await Lifecycle(grace=5, clock=FakeClock()).run([other, Worker(ends=True)])
    assert other.stopped


async def test_each_runnable_gets_the_grace_period_to_finish() -> None:
    clock = FakeClock()
    lifecycle, slow = Lifecycle(grace=5, clock=clock), Slow(clock, 4)
    running = asyncio.create_task(lifecycle.run([slow]))
    await clock.settle()
    lifecycle.stop()
    await clock.advance(3.9)
    assert not running.done()
    await clock.advance(0.2)
    await running
    assert slow.stopped


async def test_runnable_that_ignores_cancellation_is_abandoned_after_the_grace_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    lifecycle = Lifecycle(grace=5, clock=clock)
    running = asyncio.create_task(lifecycle.run([Stubborn("stubborn"), Worker()]))
    await clock.settle()
    lifecycle.stop()
    await clock.advance(4.9)
    assert not running.done()
    await clock.advance(0.2)
    await running
    stubborn = next(task for task in asyncio.all_tasks() if task.get_name() == "stubborn")
    stubborn.get_coro().close()


async def test_an_error_while_stopping_is_raised() -> None:
    class BadEnd(Worker):
        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("could not close")

    lifecycle = Lifecycle(grace=5, clock=FakeClock())
    running = asyncio.create_task(lifecycle.run([BadEnd()]))
    await FakeClock.settle()
    lifecycle.stop()
    with pytest.raises(OSError, match="could not close"):
        await running


async def test_cancelled_lifecycle_stops_every_runnable() -> None:
    worker = Worker()
    running = asyncio.create_task(Lifecycle(grace=5, clock=FakeClock()).run([worker]))
    await FakeClock.settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert worker.stopped


async def test_signal_stops_gracefully_and_second_signal_exits_at_once() -> None:
    stopped, exits = asyncio.Event(), list[int]()
    with stop_signals(stopped.set, exit_now=exits.append):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await stopped.wait()
        assert exits == []
        os.kill(os.getpid(), signal.SIGINT)
        assert exits == [130]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_repeated_hangup_signals_stop_once() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        await _hang_up_twice()
    finally:
        signal.signal(signal.SIGHUP, before)


async def _hang_up_twice() -> None:
    stopped, exits = asyncio.Event(), list[int]()
    with stop_signals(stopped.set, exit_now=exits.append):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            await stopped.wait()
        assert exits == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == [143]


async def test_hangup_signal_stays_ignored_if_it_was_ignored_at_the_start() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(pytest.fail):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
