"""Cancellation at every await: counts the awaits of a coroutine, and interrupts it at the n-th."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

Work = Callable[[], Awaitable[object]]


class CountedAwaits:
    """An awaitable that counts the awaits of `work`, and calls `interrupt` when the n-th one begins to wait."""

    def __init__(self, work: Awaitable[object], at: int = 0, interrupt: Callable[[], object] | None = None) -> None:
        self.awaits = 0
        self._work = work
        self._at = at
        self._interrupt = interrupt

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._work.__await__()
        step: Callable[[], Any] = lambda: inner.send(None)  # noqa: E731
        while True:
            try:
                waiting = step()
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self._at and self._interrupt is not None:
                self._interrupt()
            try:
                got = yield waiting
            except BaseException as error:  # noqa: BLE001 - it is the work's to handle
                step = _thrower(inner, error)
            else:
                step = _sender(inner, got)


def _thrower(inner: Any, error: BaseException) -> Callable[[], Any]:  # noqa: ANN401 - a generator, or what acts as one
    return lambda: inner.throw(error)


def _sender(inner: Any, value: object) -> Callable[[], Any]:  # noqa: ANN401 - the same
    return lambda: inner.send(value)


async def count_awaits(work: Work) -> int:
    """Return how often `work` awaits when it is not interrupted."""
    stepped = CountedAwaits(work())

    async def undisturbed() -> None:
        await stepped

    await asyncio.create_task(undisturbed())
    return stepped.awaits


def cancel_this() -> None:
    """Cancel the running task."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def cancelling_all(spared: set[asyncio.Task[Any]]) -> Callable[[], None]:
    """Return a function that cancels every task except those given, as `asyncio.run` does at its end."""

    def cancel() -> None:
        for task in asyncio.all_tasks():
            if task not in spared:
                task.cancel()

    return cancel


async def interrupted(work: Work, at: int, interrupt: Callable[[], object]) -> BaseException | None:
    """Run `work`, interrupt it at its await number `at`, and return the exception that it raised."""

    async def stepped() -> BaseException | None:
        try:
            await CountedAwaits(work(), at, interrupt)
        except BaseException as error:  # noqa: BLE001 - a task would make a new CancelledError, without its cause
            return error
        return None

    return await asyncio.create_task(stepped())
