"""The caller of durable listeners: in the event loop, or in a thread for a plain `def` handler."""

import asyncio
import functools
from collections.abc import Callable
from inspect import isawaitable

from bus.delivery import Delivery
from bus.handler_calls import finish_call, refuse_generator
from bus.listeners import Listener
from bus.worker.slot import Slot
from bus.worker.threads import Ended, ThreadPool


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
