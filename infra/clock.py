"""Time as a dependency, so that tests can move it."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how to wait. Everything in the bus and its drivers that waits, waits here."""

    def time(self) -> float:
        """Return the wall-clock time, in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        """Return True as soon as `event` is set, False once `timeout` seconds passed without it."""
        ...


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True
