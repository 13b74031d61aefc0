"""Helpers that run work in another event loop: in a thread, in a forked child, or without a loop."""

import asyncio
import os
import signal
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

Work = Callable[[], Awaitable[object]]

SECONDS = 30
"""Seconds after which a forked child is killed."""


async def in_thread(work: Work) -> str:
    """Return class and text of what `work` raises in an event loop in a thread; "" if nothing."""
    return await asyncio.to_thread(outcome, work)


def outcome(work: Work) -> str:
    """Return class and text of what `work` raises in a new event loop; "" if nothing."""
    try:
        asyncio.run(_awaited(work))
    except Exception as error:  # noqa: BLE001 - the caller asks for any error
        return f"{type(error).__name__}: {error}"
    return ""


def in_fork(work: Work) -> str:
    """Return what `work` raises in a new event loop of a forked child."""
    return forked(lambda: outcome(work))


def in_forked_coroutine(work: Work) -> str:
    """Return what `work` raises in a forked child that continues the coroutine of its parent."""
    return forked(lambda: stepped(work))


def stepped(work: Work) -> str:
    """Run the first step of `work` without an event loop; return what it raises."""
    coroutine = _awaited(work)
    try:
        coroutine.send(None)
    except Exception as error:  # noqa: BLE001 - the caller asks for any error
        return f"{type(error).__name__}: {error}"
    finally:
        coroutine.close()
    return "it has begun"


def forked(work: Callable[[], str]) -> str:
    """Return what `work` returns in a forked child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks with threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


async def _awaited(work: Work) -> Any:  # noqa: ANN401 - the result is not used
    return await work()
