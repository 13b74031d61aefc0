"""Time as a dependency, so that tests can move it."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """The time, and waits. The bus and its drivers wait by these methods alone."""

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


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._now = start
        self._order = itertools.count()
        self._waiters: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now - self._start

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._waiter(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        if event.is_set() or timeout <= 0:
            await asyncio.sleep(0)
            return event.is_set()
        alarm = self._waiter(timeout)
        waiter = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((alarm, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            waiter.cancel()
        return event.is_set()

    async def advance(self, seconds: float) -> None:
        """Advance the time by `seconds`; wake up the waiters of each time together, in order, and let them run."""
        end = self._now + seconds
        await self.settle()
        while self._waiters and self._waiters[0][0] <= end:
            self.move_to(self._waiters[0][0])
            if self._wake_up():
                await self.settle()
        self._now = end

    def move_to(self, time: float) -> None:
        """Set the time to `time`, in seconds since the epoch, without waking up waiters; it never goes back."""
        self._now = max(self._now, time)

    @staticmethod
    async def settle(rounds: int = 50) -> None:
        """Let every task that can run without time passing do so."""
        for _ in range(rounds):
            await asyncio.sleep(0)

    def _wake_up(self) -> bool:
        """Wake up every waiter whose time has come; return whether there was one."""
        woken = False
        while self._waiters and self._waiters[0][0] <= self._now:
            waiter = heapq.heappop(self._waiters)[-1]
            if not waiter.done():
                waiter.set_result(None)
                woken = True
        return woken

    def _waiter(self, seconds: float) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (self._now + seconds, next(self._order), future))
        return future
