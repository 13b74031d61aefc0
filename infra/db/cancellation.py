"""Helpers to complete work although the task that waits for it is cancelled."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Generic, NamedTuple, TypeVar

_T = TypeVar("_T")


class Finished(NamedTuple, Generic[_T]):
    """The completed task of some work, and a cancellation of the caller that arrived meanwhile and must be raised."""

    task: "asyncio.Task[_T]"
    cancelled: asyncio.CancelledError | None

    @property
    def failure(self) -> BaseException | None:
        """The exception of the work; a CancelledError if the work was cancelled, as when all tasks of the loop are."""
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()


class _Begun(asyncio.Task[_T]):
    """A task that runs its first step before a cancellation reaches it.

    A task that is cancelled before its first step never runs: when `asyncio.run` cancels all tasks of the loop at its
    end, a connection would never be returned to its pool.
    """

    def cancel(self, msg: object = None) -> bool:
        work = self.get_coro()
        if isinstance(work, Coroutine) and not self.done() and getcoroutinestate(work) == CORO_CREATED:
            self.get_loop().call_soon(super().cancel, msg)  # its first step is scheduled before that
            return True
        return super().cancel(msg)


def begin(work: Coroutine[Any, Any, _T], *, context: Context | None = None) -> "asyncio.Task[_T]":
    """Return a task for `work` that runs its first step before a cancellation reaches it.

    So the `finally` blocks of `work` run in any case.
    """
    return _Begun(work, loop=asyncio.get_running_loop(), context=context)


async def finish(
    work: Coroutine[Any, Any, _T], *, patience: float | None = None, hurried: bool = False
) -> Finished[_T]:
    """Run `work` to its end, however often the calling task is cancelled meanwhile; never raises.

    `patience` is the time, in seconds, that the work may still take after a cancellation of the calling task; then the
    work is cancelled too. `hurried` says that the calling task was cancelled before this call.
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
