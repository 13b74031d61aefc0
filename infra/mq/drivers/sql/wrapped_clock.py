"""What the queue's clocks on both databases take over from the clock that they are made of."""

import asyncio

from infra.clock import Clock


class WrappedClock:
    """Monotonic time and waiting by another clock; a subclass adds `time`, the queue's own, and is a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        return await self._clock.wait(event, timeout)
