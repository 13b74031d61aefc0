"""The base class of the queue's clocks on both databases."""

import asyncio

from infra.clock import Clock


class WrappedClock:
    """Monotonic time and waits of another clock; a subclass adds `time`, the queue's time, and so is a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        return await self._clock.wait(event, timeout)
