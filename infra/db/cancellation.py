"""Work that a cancelled task must not leave half done."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Generic, NamedTuple, TypeVar

_T = TypeVar("_T")


class Finished(NamedTuple, Generic[_T]):
    """How a piece of work ended, and the cancellation of the caller that arrived meanwhile and must go on."""

    task: "asyncio.Task[_T]"
    cancelled: asyncio.CancelledError | None

    @property
    def failure(self) -> BaseException | None:
        """What the work raised; a CancelledError if somebody ended all tasks of the loop."""
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()


class _Begun(asyncio.Task[_T]):
    """A task that takes its first step before a cancellation reaches it.

    A task that is cancelled before that never runs: cancelling all tasks of the loop, as `asyncio.run` does at its end,
    would keep a connection from ever being returned.
    """

    def cancel(self, msg: object = None) -> bool:
        work = self.get_coro()
        if isinstance(work, Coroutine) and not self.done() and getcoroutinestate(work) == CORO_CREATED:
            self.get_loop().call_soon(super().cancel, msg)  # its first step is scheduled before that
            return True
        return super().cancel(msg)


def begin(work: Coroutine[Any, Any, _T], *, context: Context | None = None) -> "asyncio.Task[_T]":
    """Return a task that does `work` and takes its first step before a cancellation reaches it.

    For work that sees to its own end: its `finally` blocks run in any case.
    """
    return _Begun(work, loop=asyncio.get_running_loop(), context=context)


async def finish(
    work: Coroutine[Any, Any, _T], *, patience: float | None = None, hurried: bool = False
) -> Finished[_T]:
    """Run `work` to its end, however often the calling task is cancelled meanwhile; never raises.

    Work that has not ended `patience` seconds after such a cancellation is cancelled as well; `hurried` says that there
    was one before.
    """
    task = begin(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,), timeout=patience if hurried else None)
            if not task.done():
                task.cancel()
        except asyncio.CancelledError as error:
            cancelled, hurried = error, True
    return Finished(task, cancelled)
