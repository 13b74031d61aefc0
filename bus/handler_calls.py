"""Handlers as functions: their names and kinds, their calls and contexts, and exits in their errors."""

import contextvars
import functools
import inspect
import types
from collections.abc import Coroutine, Generator, Iterator
from inspect import isawaitable
from typing import Any

from infra.failures import members
from infra.mq.limits import shown


def function_name(function: object) -> str:
    """Return the module and qualified name of a handler or middleware, for errors."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def check_function(function: object, arguments: int, *, is_async: bool, expected: str) -> None:
    """Check that `function` can be called with this number of arguments, and whether it is `async def`.

    Raises:
        ValueError: it is something else; the message ends with what is `expected`.
    """
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"{shown(function)} is not a function; {expected}")  # noqa: TRY004 - one type of error for all options
    name = function_name(function)
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be called ({error}); {expected}") from error
    if is_async_function(function) is not is_async:
        raise ValueError(f"{name} is {'not ' if is_async else ''}`async def`; {expected}")


def is_async_function(function: object) -> bool:
    """Whether the function, or what it wraps, is declared `async def`."""
    return any(inspect.iscoroutinefunction(each) for each in layers_of(function))


def layers_of(function: object) -> Iterator[object]:
    """Yield a function and what it wraps: the function of a partial, a callable object or a decorator."""
    seen: set[int] = set()
    while function is not None and id(function) not in seen:
        seen.add(id(function))
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        elif (inner := getattr(function, "__wrapped__", None)) is not None:
            function = inner
        else:
            function = None if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004 - not a test of callability


async def finish_call(result: object) -> None:
    """Await the result of a handler, again if that is awaitable: a wrapper may return a coroutine."""
    while result is not None and isawaitable(result):
        result = await result
    if result is not None:
        refuse_generator(result)


def refuse_generator(result: object) -> None:
    """Refuse a generator that a handler returned, because its body has not run.

    Raises:
        TypeError: the result is a generator.
    """
    if type(result) in {types.GeneratorType, types.AsyncGeneratorType}:
        raise TypeError(
            "the handler returned a generator, whose body never runs: a handler is `async def` without yield"
        )


@types.coroutine
def run_in_context(
    context: contextvars.Context, work: Coroutine[Any, Any, None], waits_for: object
) -> Generator[object, object, None]:
    """Run the rest of `work`, which awaits `waits_for`, in the calling task, with each step in `context`.

    Context variables that `work` sets stay in `context`. A task of its own would do the same at a much higher cost.
    """
    try:
        while True:
            try:
                received = yield waits_for
            except GeneratorExit:
                context.run(work.close)
                raise
            except BaseException as error:  # noqa: BLE001 - the handler receives it
                waits_for = context.run(work.throw, error)
            else:
                waits_for = context.run(work.send, received)
    except StopIteration:
        return


def exit_in(error: BaseException) -> BaseException | None:
    """Return `error` if it is a SystemExit or KeyboardInterrupt, or the first one in a group; None if there is none."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if issubclass(type(each), SystemExit | KeyboardInterrupt):
            return each
        if issubclass(type(each), BaseExceptionGroup) and id(each) not in seen:
            seen.add(id(each))
            pending += members(each)
    return None
