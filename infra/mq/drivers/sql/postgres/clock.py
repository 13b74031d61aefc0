"""The server's time, as this process reckons it."""

import asyncio
import time

from infra.clock import Clock, SystemClock
from infra.db.postgresql_driver import Driver

_NOW = "SELECT extract(epoch FROM clock_timestamp())::double precision"


class ServerClock:
    """This machine's clock, put right by what the server's says: all processes go by one time.

    A clock that is not the system's, as in tests, is the time itself and left alone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._adjustable = isinstance(clock, SystemClock)
        self.offset = 0.0
        """How many seconds the server is ahead."""

        self._error = float("inf")

    def time(self) -> float:
        return self._clock.time() + self.offset

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        return await self._clock.wait(event, timeout)

    async def compare(self, driver: Driver) -> None:
        """Ask the server for the time once; an answer that took longer than earlier ones changes little."""
        before = time.monotonic()
        server: float = await driver.fetchval(_NOW)
        taken = time.monotonic() - before
        if not self._adjustable:
            return
        offset = server + taken / 2 - self._clock.time()
        if taken <= self._error or abs(offset - self.offset) > taken:
            self.offset, self._error = offset, taken
        self._error *= 1.1  # clocks drift: what was known better once is known less well by now
