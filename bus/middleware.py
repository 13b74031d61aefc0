"""Middleware: functions of the application that run around each attempt of async listeners."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast

import structlog

from bus.delivery import Delivery
from bus.handler_calls import check_function, function_name
from infra.failures import describe
from infra.mq.limits import check_items

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CallNext = Callable[[], Awaitable[None]]
"""Runs the next middleware or, in the innermost one, the handler; to be awaited once."""

Middleware = Callable[[Any, Delivery, CallNext], Awaitable[None]]
"""An `async def` function of the event, its delivery, and `call_next`."""

EXPECTED = "a middleware is `async def f(event: object, delivery: Delivery, call_next: CallNext) -> None`"

MAX_MIDDLEWARE = 100
"""The most middleware of a bus or a listener."""


class MiddlewareError(Exception):
    """A middleware ended without an outcome of the handler; counts as a failure of the attempt."""


def check_middleware(middleware: object) -> Middleware:
    """Return `middleware` if it has the signature of a middleware.

    Raises:
        ValueError: it has not; the message says what is expected.
    """
    check_function(middleware, 3, is_async=True, expected=EXPECTED)
    return cast("Middleware", middleware)


def check_all_middleware(middleware: object) -> tuple[Middleware, ...]:
    """Return several middleware as a tuple.

    Raises:
        ValueError: it is not iterable, or holds something else than middleware, or more than `MAX_MIDDLEWARE`.
    """
    items = check_items(middleware, "middleware", "list", "functions", MAX_MIDDLEWARE)
    return tuple(check_middleware(each) for each in items)


class _Next:
    """The `call_next` of one middleware in one attempt."""

    __slots__ = ("_begun", "_call", "_ended", "_error")

    def __init__(self, call: CallNext) -> None:
        self._call = call
        self._begun = False
        self._ended = False
        self._error: BaseException | None = None

    async def __call__(self) -> None:
        if self._begun:
            raise MiddlewareError("call_next() was called twice in one attempt; raise an error to retry the delivery")
        self._begun = True
        try:
            await self._call()
        except BaseException as error:
            self._error = error
            raise
        self._ended = True

    def require_outcome(self, middleware: Middleware, delivery: Delivery) -> None:
        """Raise the handler's error if the middleware has suppressed it, or an error if the handler did not end."""
        if self._ended:
            return
        name = function_name(middleware)
        if self._error is not None:
            log.warning(
                "handler error suppressed", middleware=name, listener=delivery.listener, error=describe(self._error)
            )
            raise self._error
        if self._begun:
            raise MiddlewareError(f"{name} returned before call_next() had ended; await it")
        raise MiddlewareError(f"{name} returned without calling call_next(); to drop an event raise Discard")


async def call_through(layers: Sequence[Middleware], event: object, delivery: Delivery, handler: CallNext) -> None:
    """Call `handler` inside `layers`, of which the first one is the outermost.

    Raises:
        MiddlewareError: a middleware returned although the handler was not called, or has not ended.
        BaseException: the error of the handler, also if a middleware suppressed it, or of a middleware.
    """
    if not layers:
        await handler()
        return
    outermost = layers[0]
    call_next = _Next(partial(call_through, layers[1:], event, delivery, handler))
    await outermost(event, delivery, call_next)
    call_next.require_outcome(outermost, delivery)
