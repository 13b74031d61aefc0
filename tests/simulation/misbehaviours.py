"""The misbehaviours of simulated handlers: errors, hangs, cancellations and exits."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from bus import RetryLater

TIMEOUT = 1.5
"""The timeout of most listeners, in seconds."""


class HandlerFailed(Exception):
    """An ordinary failure of a handler."""


class UnprintableError(Exception):
    """An error whose `str` and `repr` raise."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Panic(BaseException):
    """The exception of a native library that panics."""


async def _fail(random: Random) -> None:
    raise HandlerFailed(str(random.random()))


async def _fail_with_unprintable_error(_: Random) -> None:
    raise UnprintableError


async def _hang(_: Random) -> None:
    await asyncio.sleep(1000)


async def _delay(random: Random) -> None:
    await asyncio.sleep(random.uniform(0.1, TIMEOUT))


async def _cancel_itself(_: Random) -> None:
    raise asyncio.CancelledError("own")


async def _await_cancelled_task(_: Random) -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel("own")
    await task


async def _cancel_its_task(_: Random) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("own")
    await asyncio.sleep(10)


async def _suppress_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)


async def _fail_on_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError as error:
        raise HandlerFailed("instead of the cancellation") from error


async def _panic(_: Random) -> None:
    raise Panic("native")


async def _fail_with_group(_: Random) -> None:
    raise BaseExceptionGroup("several", [UnprintableError(), Panic()])


async def _defer(random: Random) -> None:
    if random.random() < 0.5:
        raise RetryLater(random.uniform(0, 0.5))


async def _exit(random: Random) -> None:
    """End the process directly, in an exception group, or in a task of its own, where the event loop raises at once."""
    way = random.randrange(3)
    if way == 0:
        raise SystemExit(3)
    if way == 1:
        raise BaseExceptionGroup("several", [HandlerFailed(), SystemExit(3)])
    await asyncio.create_task(_exit_task())


async def _exit_task() -> None:
    raise SystemExit(3)


MISBEHAVIOURS: list[Callable[[Random], Awaitable[None]]] = [
    _fail,
    _fail,
    _fail,
    _hang,
    _delay,
    _delay,
    _defer,
    _exit,
    _cancel_itself,
    _await_cancelled_task,
    _suppress_cancellation,
    _fail_on_cancellation,
    _fail_with_unprintable_error,
    _cancel_its_task,
    _panic,
    _fail_with_group,
]


def exits(error: BaseException) -> bool:
    """Whether an error contains a `SystemExit`, and so ends the process."""
    if isinstance(error, BaseExceptionGroup):
        return any(exits(each) for each in error.exceptions)
    return isinstance(error, SystemExit)
