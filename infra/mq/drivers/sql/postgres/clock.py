"""The server's time, as this process reckons it."""

import asyncio

from infra.clock import Clock, SystemClock
from infra.db.postgresql_driver import Driver
from infra.mq.clock_offset import ClockOffset

_NOW = "SELECT extract(epoch FROM clock_timestamp())::double precision"


class ServerClock:
    """This machine's monotonic clock, put right by what the server's says: all processes go by one time.

    A step of this machine's wall clock moves nothing: it is read once. A step of the server's clock does, for its time
    is the queue's; every process follows it with its next comparison.

    A clock that is not the system's, as in tests, is the time itself and left alone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._adjustable = isinstance(clock, SystemClock)
        self._offset = ClockOffset()
        self._start = clock.time() - clock.monotonic()

    def time(self) -> float:
        return self._local() + self._offset.seconds if self._adjustable else self._clock.time()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        return await self._clock.wait(event, timeout)

    async def compare(self, driver: Driver) -> None:
        """Ask the server for the time once."""
        asked_at = self._local()
        server: float = await driver.fetchval(_NOW)
        if self._adjustable:
            self._offset.learn(asked_at, server, self._local())

    def _local(self) -> float:
        return self._start + self._clock.monotonic()
