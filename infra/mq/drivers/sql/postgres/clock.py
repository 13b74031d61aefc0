"""The queue's clock on PostgreSQL: this machine's monotonic clock, corrected by the server's clock."""

import math

from infra.clock import Clock, SystemClock
from infra.db.postgresql_driver import Driver
from infra.mq.clock_offset import ClockOffset
from infra.mq.drivers.sql.wrapped_clock import WrappedClock

SLOWER = 0.1
"""The fraction by which the queue's clock runs slower while it is ahead of the server's, as in migration 0010."""

DRIFT = 0.001
"""The largest difference in speed between this machine's clock and the server's, in seconds per second."""

_TIME = "SELECT reached, slower FROM beneath_time_1($1, $2)"


class ServerClock(WrappedClock):
    """The queue's clock, which is the same in all processes.

    A step of this machine's wall clock has no effect: the wall clock is read once. When the server's clock is set
    forward, every process follows with its next comparison. When it is set back, the queue's time continues and runs a
    tenth slower until both agree; the server stores the difference, so that new processes agree too.

    A clock other than the system's, as in tests, is used without correction.
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
        """Compare this clock with the server's, and correct it."""
        asked_at = self._local()
        slack = (asked_at - self._compared_at) * DRIFT  # infinite before the first answer
        expected = self.time() if math.isfinite(slack) else asked_at
        reached, slower = await driver.fetchrow(_TIME, expected - slack, expected + slack)
        if self._adjustable:
            self._compared_at, self._slower = self._local(), slower
            self._offset.learn(asked_at, reached, self._compared_at)

    def _local(self) -> float:
        return self._start + self._clock.monotonic()
