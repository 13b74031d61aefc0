"""A background loop of the relay: supervised, and ended between two steps."""

import asyncio
from collections.abc import Awaitable, Callable

from bus.supervisor import SupervisedTask, Supervisor
from infra.clock import Clock

CLOSE_TIMEOUT = 10.0
"""Seconds that `close()` gives the step under way, so that nothing is left sent with its row in place."""


IDLE = 60.0
"""Seconds between two steps of a loop that `wake()` alone is to begin."""


class RelayLoop:
    """Calls `step` whenever `wake()` was called, and every `every` seconds, until it is closed."""

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
        """Whether it is being closed: a step that works in rounds ends after the present one."""
        return self._stopping

    def start(self, supervisor: Supervisor) -> None:
        """Begin."""
        self._task = supervisor.start(self._name, self._run)

    def wake(self) -> None:
        """Let a step begin now, or right after the present one."""
        self._wanted.set()

    def catch_up(self) -> None:
        """Forget calls of `wake()` so far: the step is about to see what they were for."""
        if not self._stopping:
            self._wanted.clear()

    def progressed(self) -> None:
        """Note that a step got something done: a failure after that is the first in a row."""
        if self._task is not None:
            self._task.succeeded()

    def done(self) -> bool:
        """Whether it does not run, or runs no more."""
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Let the step under way end, then end the loop."""
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
            self._wanted.set()  # what was asked for is not forgotten with a failure
            self._ended.set()
