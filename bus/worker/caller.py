"""The caller of durable listeners: calls handlers in the event loop, and plain `def` handlers in a thread."""

import asyncio
import functools
from collections.abc import Callable
from inspect import isawaitable

from bus.delivery import Delivery
from bus.handler_calls import finish_call, refuse_generator
from bus.listeners import Listener
from bus.worker.slot import Slot
from bus.worker.threads import CallResult, ThreadPool


class Caller:
    """Calls durable listeners, and remembers which plain functions return an awaitable."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._returning_awaitables: set[Listener] = set()

    async def call(self, slot: Slot, event: object, delivery: Delivery) -> None:
        """Call the handler of the slot's listener, and wait for its end.

        Raises:
            NoThread: the handler needs a thread, and none could be started; the handler was not called.
            BaseException: the handler's error.
        """
        listener = slot.listener
        if listener.is_async or listener in self._returning_awaitables:
            await finish_call(listener.call(event, delivery))
            return
        ended = await self._run_in_thread(slot, functools.partial(listener.call, event, delivery))
        if ended.error is not None:
            raise ended.error
        if ended.result is not None:
            refuse_generator(ended.result)
        if isawaitable(ended.result):
            # A plain wrapper of an `async def` function: later calls need no thread.
            self._returning_awaitables.add(listener)
            await finish_call(ended.result)

    async def _run_in_thread(self, slot: Slot, function: Callable[[], object]) -> CallResult:
        future = self._threads.submit(function)
        slot.in_thread = True
        while True:
            try:
                ended = await asyncio.shield(future)
            except asyncio.CancelledError:
                if slot.task is None or slot.is_stopping:
                    raise  # the thread still runs, so the slot keeps the claim
            else:
                slot.in_thread = False
                return ended
