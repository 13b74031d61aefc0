"""The stop of a worker: every step is carried out, however often the stopping task is cancelled meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

from infra.clock import Clock

ATTEMPTS = 3
"""How often a step is begun that was itself cancelled, as at the end of `asyncio.run`, which cancels every task."""


class StopSequence:
    """The steps of one stop, and the latest cancellation that came while they ran."""

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
        """Wait until `task` is done, as `wait` does."""
        ended = asyncio.Event()
        task.add_done_callback(lambda _: ended.set())
        await self.wait(ended, seconds)

    async def through(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` to its end in a task of its own; a cancellation does not reach it.

        Raises: what `step` raises.
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
