"""The lifecycle: runs several runnables together, and stops them together, also on signals."""

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
    """A named task that runs until cancelled."""

    @property
    def name(self) -> str:
        """Its name in logs."""
        ...

    async def run(self) -> None:
        """Run until cancelled; then complete or release all in-flight work and raise the CancelledError."""
        ...


class RunnableEnded(Exception):
    """A runnable ended although no shutdown was requested."""


class ExitRequested(Exception):
    """A handler raised SystemExit or KeyboardInterrupt: the process shuts down and ends with that exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def exit_requests() -> Iterator[None]:
    """Turn a SystemExit or KeyboardInterrupt that leaves the block into `ExitRequested`.

    If a task raised them unchanged, they would stop the event loop before the other runnables could end.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise ExitRequested(128 + signal.SIGINT, "a handler raised KeyboardInterrupt") from error
    except SystemExit as error:
        # The meaning of the argument of `sys.exit()`: None is code 0, a number is the code, a text is an error: code 1.
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
        raise ExitRequested(code, f"a handler ended the process with exit code {code}") from error


class Lifecycle:
    """Runs runnables together; the first failure, or `stop()`, cancels all of them.

    Each has `grace` seconds to end. One that takes longer is logged and no longer waited for.
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
        """Request the shutdown of all runnables; repeated calls do nothing. Call it in the event loop's thread only."""
        self._stopping.set()

    async def run(self, runnables: Sequence[Runnable]) -> None:
        """Run until stopped, then return, or raise the error of the first runnable that failed.

        Returns at once if `stop` was called before.

        Raises:
            RunnableEnded: a runnable returned or was cancelled before a shutdown was requested.
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
        return None if asked else RunnableEnded(f"{task.get_name()} was cancelled by itself")
    if (error := task.exception()) is not None:
        return error
    return None if asked else RunnableEnded(f"{task.get_name()} ended before a shutdown was requested")


@contextmanager
def stop_signals(
    stop: Callable[[], None], *, exit_now: Callable[[int], object] = os._exit, signals: Sequence[int] = SIGNALS
) -> Iterator[None]:
    """Handle `signals` inside the block: the first calls `stop` in the event loop, the second ends the process at once.

    Needs the main thread and a running loop. The second also works while the loop is blocked. SIGHUP never counts as
    the second, because a closed terminal may send several; it stays ignored if the process ignores it (`nohup`).
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
