"""How a handler is called: in a context of its own, in the loop or in a thread, whatever it returns."""

import asyncio
import contextvars
import functools
import types
from collections.abc import Callable, Coroutine, Generator
from inspect import isawaitable
from typing import Any

from bus.delivery import Delivery
from bus.listeners import Listener
from bus.slot import Slot
from bus.threads import Ended, ThreadPool


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


class Caller:
    """Calls durable listeners; learns which plain functions return awaitables."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._found_async: set[Listener] = set()

    async def call(self, slot: Slot, event: object, delivery: Delivery) -> None:
        """Run the handler of `slot` to its end.

        Raises:
            NoThread: it needs a thread, and none could be started; the handler was not called.
            BaseException: what the handler raised.
        """
        listener = slot.listener
        if listener.is_async or listener in self._found_async:
            await finish_call(listener.call(event, delivery))
            return
        ended = await self._run_in_thread(slot, functools.partial(listener.call, event, delivery))
        if ended.error is not None:
            raise ended.error
        if ended.result is not None:
            refuse_generator(ended.result)
        if isawaitable(ended.result):
            # A wrapper that does not look like `async def` around one that is: from now on it is called in the loop.
            self._found_async.add(listener)
            await finish_call(ended.result)

    async def _run_in_thread(self, slot: Slot, function: Callable[[], object]) -> Ended:
        future = self._threads.submit(function)
        slot.in_thread = True
        while True:
            try:
                ended = await asyncio.shield(future)
            except asyncio.CancelledError:
                if slot.task is None or slot.is_stopping:
                    raise  # the thread runs on: the slot keeps the claim for it
            else:
                slot.in_thread = False
                return ended


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
