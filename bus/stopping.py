"""The steps of a shutdown, all of which run even if the task that shuts down is cancelled repeatedly."""

import asyncio
from collections.abc import Awaitable, Callable

from infra.clock import Clock

ATTEMPTS = 3
"""The number of attempts at a step whose task is cancelled: `asyncio.run` cancels all tasks at its end."""


class StopSequence:
    """The steps of one shutdown; `cancelled` is the latest cancellation that arrived while they ran."""

    def __init__(self, clock: Clock) -> None:
        self.cancelled: asyncio.CancelledError | None = None
        self._clock = clock

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for `event`, at most `seconds` and at most until the next cancellation; return whether it is set."""
        try:
            return await self._clock.wait(event, seconds)
        except asyncio.CancelledError as error:
            self.cancelled = error
            return event.is_set()

    async def wait_for_end(self, task: asyncio.Future[None], seconds: float) -> None:
        """Wait for `task` to end, at most `seconds` and at most until the next cancellation."""
        ended = asyncio.Event()
        task.add_done_callback(lambda _: ended.set())
        await self.wait(ended, seconds)

    async def through(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` to its end in a task of its own, which a cancellation of the caller does not reach.

        Raises: the errors of `step`.
        """
        for _ in range(ATTEMPTS):
            task = asyncio.ensure_future(step())
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError as error:
                    self.cancelled = error
            if not task.cancelled():
                task.result()
                return
