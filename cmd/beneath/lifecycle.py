"""Running several things together, and stopping them together."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import structlog

from infra.clock import Clock, SystemClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runnable(Protocol):
    """Something that works until it is cancelled."""

    @property
    def name(self) -> str:
        """What to call it in logs."""
        ...

    async def run(self) -> None:
        """Work until cancelled, then finish or give back what is under way and let the cancellation pass."""
        ...


class RunnableEnded(Exception):
    """A runnable returned although nobody had asked it to stop."""


class ExitRequested(Exception):
    """A handler raised SystemExit or KeyboardInterrupt: everything stops, and the process ends with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def exit_requests() -> Iterator[None]:
    """Turn a SystemExit or KeyboardInterrupt that leaves the block into `ExitRequested`.

    Raised in a task as they are, they would stop the event loop before anything else could stop.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise ExitRequested(128 + signal.SIGINT, "a handler raised KeyboardInterrupt") from error
    except SystemExit as error:
        # As `sys.exit()` has it: nothing is 0, a number is the code, all else is an error's text.
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
        raise ExitRequested(code, f"a handler ended the process with exit code {code}") from error


class Lifecycle:
    """Runs runnables together: the first failure, or `stop()`, stops all of them.

    Each gets `grace` seconds to end. One that takes longer is left behind and named in the log: it keeps neither the
    others nor the process.
    """

    def __init__(self, *, grace: float, clock: Clock | None = None) -> None:
        self.grace = grace
        self._clock = clock or SystemClock()
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called, or something failed."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask everything to stop; again does nothing. In the event loop's thread only."""
        self._stopping.set()

    async def run(self, runnables: Sequence[Runnable]) -> None:
        """Run until stopped (not at all if that was asked before), then return, or raise what the first to fail raised.

        Raises:
            RunnableEnded: one returned without being asked to.
        """
        if self.stopping:
            return
        tasks = [asyncio.create_task(each.run(), name=each.name) for each in runnables]
        stopping = asyncio.create_task(self._stopping.wait())
        failure: BaseException | None = None
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            failure = next((cause for each in tasks if (cause := _failure(each, asked=stopping.done()))), None)
        finally:
            stopping.cancel()
            self._stopping.set()
            await self._end(tasks)
        failure = failure or next((cause for each in tasks if (cause := _failure(each, asked=True))), None)
        if failure is not None:
            raise failure

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        left = {each for each in tasks if not each.done()}
        ended = asyncio.Event()

        def count(task: asyncio.Task[None]) -> None:
            left.discard(task)
            if not left:
                ended.set()

        for each in list(left):
            each.add_done_callback(count)
            each.cancel()
        if left:
            await self._clock.wait(ended, self.grace)
        for each in left:
            log.error("runnable left behind", runnable=each.get_name(), grace=self.grace)


def _failure(task: asyncio.Task[None], *, asked: bool) -> BaseException | None:
    if not task.done():
        return None
    if task.cancelled():
        return None if asked else RunnableEnded(f"{task.get_name()} was cancelled from inside")
    if (error := task.exception()) is not None:
        return error
    return None if asked else RunnableEnded(f"{task.get_name()} ended although nobody stopped it")


@contextmanager
def stop_signals(
    stop: Callable[[], None], *, exit_now: Callable[[int], object] = os._exit, signals: Sequence[int] = SIGNALS
) -> Iterator[None]:
    """Inside the block the first of `signals` calls `stop` in the event loop, the second ends the process at once.

    Needs the main thread and a running loop. The second works also while the loop is stuck. SIGHUP is never the second,
    because a terminal that is closed may send several; it is left alone if the process ignores it (`nohup`).
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []
    signals = [it for it in signals if it != signal.SIGHUP or signal.getsignal(it) is not signal.SIG_IGN]

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            loop.call_soon_threadsafe(stop)
        elif number != signal.SIGHUP:
            exit_now(128 + number)

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
