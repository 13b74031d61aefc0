"""Calls of handlers: awaiting what a handler returns, in a context of its own, and the exits that it may raise."""

import contextvars
import types
from collections.abc import Coroutine, Generator
from inspect import isawaitable
from typing import Any

from infra.failures import members


async def finish_call(result: object) -> None:
    """Await what a handler returned, as long as that can be awaited: a wrapper may return what it did not await."""
    while result is not None and isawaitable(result):
        result = await result
    if result is not None:
        refuse_generator(result)


def refuse_generator(result: object) -> None:
    """Refuse what a wrapper returned of a generator function: its body has not run.

    Raises:
        TypeError: it is a generator.
    """
    if type(result) in {types.GeneratorType, types.AsyncGeneratorType}:
        raise TypeError(
            "the handler returned a generator, whose body never runs: a handler is `async def` without yield"
        )


@types.coroutine
def run_in_context(
    context: contextvars.Context, work: Coroutine[Any, Any, None], waits_for: object
) -> Generator[object, object, None]:
    """Go on with `work`, which waits for `waits_for`, in the calling task, but with every step in `context`.

    What it sets in context variables stays there, at a fraction of what a task of its own would cost.
    """
    try:
        while True:
            try:
                received = yield waits_for
            except GeneratorExit:
                context.run(work.close)
                raise
            except BaseException as error:  # noqa: BLE001 - a cancellation, or anything else: the handler's to see
                waits_for = context.run(work.throw, error)
            else:
                waits_for = context.run(work.send, received)
    except StopIteration:
        return


def exit_in(error: BaseException) -> BaseException | None:
    """Return the SystemExit or KeyboardInterrupt that `error` is, or that a group has in it."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if issubclass(type(each), SystemExit | KeyboardInterrupt):
            return each
        if issubclass(type(each), BaseExceptionGroup) and id(each) not in seen:
            seen.add(id(each))
            pending += members(each)
    return None
