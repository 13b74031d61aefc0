"""Hostile handler code, and the expected effect of each piece on its delivery."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from enum import Enum, auto

import structlog

from bus import Discard, RetryLater
from tests.hostile_errors import ExitingText, PanicException, Wordless

leaked: ContextVar[str] = ContextVar("leaked", default="")


class Cost(Enum):
    """The effect of one call on its delivery."""

    DONE = auto()
    """The delivery ends without a failure."""

    FAILURE = auto()
    """One failure is counted; the last one makes the delivery a dead letter."""

    LATER = auto()
    """The delivery is attempted again, without a failure."""

    CRASH = auto()
    """The process ends, and the claim is recovered."""


class Misclassed(Exception):
    @property  # type: ignore[misc]  # hostile on purpose
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]  # hostile on purpose
        raise PanicException


def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_and_fail_to_clean_up() -> None:
    try:
        await hang()
    finally:
        raise ConnectionError("closing the connection failed")


async def hang_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hang_and_fail_to_clean_up())


async def hang_and_panic() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        raise PanicException from None


async def succeed_although_cancelled() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        return


async def wait_for_cancelled_future() -> None:
    lost = asyncio.get_running_loop().create_future()
    lost.cancel()
    await lost


async def cancel_and_wait() -> None:
    cancel_own_task()
    cancel_own_task()
    await asyncio.sleep(0)


async def cancel_and_return() -> None:
    cancel_own_task()


async def fail_in_a_task() -> None:
    async def fail() -> None:
        raise Wordless

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        group.create_task(hang())


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    """Return an act that raises what `make` makes."""

    def act() -> None:
        raise make()

    return act


def set_variables() -> None:
    leaked.set("something")
    structlog.contextvars.bind_contextvars(user=Wordless())


def fail_after_setting_variables() -> None:
    set_variables()
    raise ValueError


def retry_later() -> None:
    raise RetryLater(0.5)


def retry_later_with_invalid_delay() -> None:
    later = RetryLater(1)
    later.delay = float("nan")
    raise later


def exit_process() -> None:
    sys.exit(3)


Act = Callable[[], Awaitable[None] | None]

ANYWHERE: dict[str, tuple[Act, Cost]] = {
    "succeed": (lambda: None, Cost.DONE),
    "set variables": (set_variables, Cost.DONE),
    "discard": (raising(lambda: Discard("unwanted")), Cost.DONE),
    "later": (retry_later, Cost.LATER),
    "later with an invalid delay": (retry_later_with_invalid_delay, Cost.FAILURE),
    "fail": (raising(lambda: ValueError("no")), Cost.FAILURE),
    "fail with variables": (fail_after_setting_variables, Cost.FAILURE),
    "fail without a text": (raising(Wordless), Cost.FAILURE),
    "fail with an exit as text": (raising(ExitingText), Cost.FAILURE),
    "fail without a class": (raising(Misclassed), Cost.FAILURE),
    "fail with a group": (raising(lambda: ExceptionGroup("g", [Wordless(), KeyError()])), Cost.FAILURE),
    "fail with a base group": (raising(lambda: BaseExceptionGroup("g", [PanicException()])), Cost.FAILURE),
    "fail with unstorable text": (raising(lambda: RuntimeError("\ud83d\0" + "x" * 100_000)), Cost.FAILURE),
    "panic": (raising(PanicException), Cost.FAILURE),
    "raise a cancellation": (raising(asyncio.CancelledError), Cost.FAILURE),
    "stop an iteration": (raising(StopIteration), Cost.FAILURE),
    "exit a generator": (raising(GeneratorExit), Cost.FAILURE),
    "recurse": (raising(RecursionError), Cost.FAILURE),
}
"""Acts of handlers in the event loop and in threads."""

IN_LOOP: dict[str, tuple[Act, Cost]] = ANYWHERE | {
    "hang": (hang, Cost.FAILURE),
    "hang and fail to clean up": (hang_and_fail_to_clean_up, Cost.FAILURE),
    "hang in a group": (hang_in_a_group, Cost.FAILURE),
    "hang and panic": (hang_and_panic, Cost.FAILURE),
    "succeed although cancelled": (succeed_although_cancelled, Cost.DONE),
    "wait for a cancelled future": (wait_for_cancelled_future, Cost.FAILURE),
    "cancel itself and wait": (cancel_and_wait, Cost.FAILURE),
    "cancel itself and return": (cancel_and_return, Cost.DONE),
    "fail in a task": (fail_in_a_task, Cost.FAILURE),
    "exit": (exit_process, Cost.CRASH),
    "exit in a group": (raising(lambda: BaseExceptionGroup("g", [SystemExit(3)])), Cost.CRASH),
}

IN_THREAD: dict[str, tuple[Act, Cost]] = ANYWHERE | {"exit": (exit_process, Cost.FAILURE)}
"""In a thread `sys.exit()` ends only the handler, and counts as its failure."""
