"""What handlers do instead of their work."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from bus import RetryLater

TIMEOUT = 1.5
"""Seconds that most handlers may take."""


class Unlucky(Exception):
    """A handler's own failure."""


class Unspeakable(Exception):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError("no words for it")

    __repr__ = __str__


class Panic(BaseException):
    """What a native library raises."""


async def _fail(die: Random) -> None:
    raise Unlucky(str(die.random()))


async def _fail_unspeakably(_: Random) -> None:
    raise Unspeakable


async def _hang(_: Random) -> None:
    await asyncio.sleep(1000)


async def _dawdle(die: Random) -> None:
    await asyncio.sleep(die.uniform(0.1, TIMEOUT))


async def _cancel_itself(_: Random) -> None:
    raise asyncio.CancelledError("own")


async def _await_something_cancelled(_: Random) -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel("own")
    await task


async def _cancel_its_task(_: Random) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("own")
    await asyncio.sleep(10)


async def _swallow_the_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)


async def _fail_instead_of_the_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError as error:
        raise Unlucky("instead of the cancellation") from error


async def _panic(_: Random) -> None:
    raise Panic("native")


async def _fail_severally(_: Random) -> None:
    raise BaseExceptionGroup("several", [Unspeakable(), Panic()])


async def _defer(die: Random) -> None:
    if die.random() < 0.5:
        raise RetryLater(die.uniform(0, 0.5))


async def _exit(die: Random) -> None:
    """End the process in one of three ways: the last one reaches the loop's caller at once."""
    way = die.randrange(3)
    if way == 0:
        raise SystemExit(3)
    if way == 1:
        raise BaseExceptionGroup("several", [Unlucky(), SystemExit(3)])
    await asyncio.create_task(_leave())


async def _leave() -> None:
    raise SystemExit(3)


MISDEEDS: list[Callable[[Random], Awaitable[None]]] = [
    _fail,
    _fail,
    _fail,
    _hang,
    _dawdle,
    _dawdle,
    _defer,
    _exit,
    _cancel_itself,
    _await_something_cancelled,
    _swallow_the_cancellation,
    _fail_instead_of_the_cancellation,
    _fail_unspeakably,
    _cancel_its_task,
    _panic,
    _fail_severally,
]


def exits(error: BaseException) -> bool:
    """Whether an error ends the process of a coroutine that raises it."""
    if isinstance(error, BaseExceptionGroup):
        return any(exits(each) for each in error.exceptions)
    return isinstance(error, SystemExit)
