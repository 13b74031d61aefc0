"""The background loop of the relay: runs under the supervisor, and is closed between two steps."""

import asyncio
from collections.abc import Awaitable, Callable

from bus.supervisor import SupervisedTask, Supervisor
from infra.clock import Clock

CLOSE_TIMEOUT = 10.0
"""Seconds that `close()` waits for the present step, so that no sent message is left with its row."""


IDLE = 60.0
"""Seconds between two steps of a loop that usually waits for `wake()`."""


class RelayLoop:
    """Calls `step` after each `wake()`, and every `every` seconds, until it is closed."""

    def __init__(self, name: str, step: Callable[[], Awaitable[None]], clock: Clock, *, every: float = IDLE) -> None:
        self._stopping = False
        self._name = name
        self._step = step
        self._clock = clock
        self._every = every
        self._wanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._task: SupervisedTask | None = None

    @property
    def stopping(self) -> bool:
        """Whether the loop is being closed; a step that sends groups then ends after the present group."""
        return self._stopping

    def start(self, supervisor: Supervisor) -> None:
        """Start the loop under `supervisor`."""
        self._task = supervisor.start(self._name, self._run)

    def wake(self) -> None:
        """Run a step now, or right after the present one."""
        self._wanted.set()

    def catch_up(self) -> None:
        """Clear earlier calls of `wake()`: the present step is about to read what they announced."""
        if not self._stopping:
            self._wanted.clear()

    def progressed(self) -> None:
        """Report progress to the supervisor, which then counts the next failure as the first in a row."""
        if self._task is not None:
            self._task.succeeded()

    def done(self) -> bool:
        """Whether the loop has not started, or has ended."""
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Wait for the present step to end, then end the loop."""
        self._stopping = True
        self._wanted.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            await self._task.stop()

    async def _run(self) -> None:
        self._ended.clear()
        try:
            while True:
                await self._clock.wait(self._wanted, self._every)
                if self.stopping:
                    return
                self._wanted.clear()
                await self._step()
                self.progressed()
        finally:
            self._wanted.set()  # a failed step is repeated
            self._ended.set()
