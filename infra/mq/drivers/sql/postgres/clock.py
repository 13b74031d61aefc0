"""The queue's time on PostgreSQL, as this process reckons it."""

import math

from infra.clock import Clock, SystemClock
from infra.db.postgresql_driver import Driver
from infra.mq.clock_offset import ClockOffset
from infra.mq.drivers.sql.wrapped_clock import WrappedClock

SLOWER = 0.1
"""By how much slower than this machine's clock the queue's runs while it is ahead of the server's, as in `0010`."""

DRIFT = 0.001
"""By how much this machine's clock and the server's differ in speed at most, in seconds for each second."""

_TIME = "SELECT reached, slower FROM beneath_time_1($1, $2)"


class ServerClock(WrappedClock):
    """This machine's monotonic clock, corrected by the server's: all processes have one time.

    A step of this machine's wall clock moves nothing: it is read once. When the server's clock is set forward, every
    process follows it with its next comparison; when it is set back, the queue's time goes on from where it was, and
    runs a tenth slower until both agree. The server keeps how far it is ahead, so that new processes agree, too.

    A clock that is not the system's, as in tests, is the time itself and not corrected.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._adjustable = isinstance(clock, SystemClock)
        self._offset = ClockOffset()
        self._start = clock.time() - clock.monotonic()
        self._compared_at = -math.inf
        self._slower = False

    def time(self) -> float:
        if not self._adjustable:
            return self._clock.time()
        local = self._start + self._clock.monotonic()
        if self._slower:
            local -= (local - self._compared_at) * SLOWER
        return local + self._offset.seconds

    async def compare(self, driver: Driver) -> None:
        """Ask the server for the queue's time once."""
        asked_at = self._local()
        slack = (asked_at - self._compared_at) * DRIFT  # infinite before the first answer
        expected = self.time() if math.isfinite(slack) else asked_at
        reached, slower = await driver.fetchrow(_TIME, expected - slack, expected + slack)
        if self._adjustable:
            self._compared_at, self._slower = self._local(), slower
            self._offset.learn(asked_at, reached, self._compared_at)

    def _local(self) -> float:
        return self._start + self._clock.monotonic()
