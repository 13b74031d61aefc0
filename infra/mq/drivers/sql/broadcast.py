"""The SQL driver's `BroadcastReceiver`."""

import asyncio
from collections.abc import Callable

from infra.clock import Clock
from infra.mq.drivers.sql.dialect import QueueDialect
from infra.mq.errors import QueueClosed


class SqlReceiver:
    """The `BroadcastReceiver` of `SqlQueue.receiver`; it returns the broadcasts after number `last`."""

    def __init__(
        self, dialect: QueueDialect, clock: Clock, origin: str, last: int, forget: Callable[["SqlReceiver"], None]
    ) -> None:
        self._dialect = dialect
        self._clock = clock
        self._origin = origin
        self._last = last
        self._forget = forget
        self._changed = asyncio.Event()
        self._interruptions = dialect.interruptions
        self._gap = False
        self._woken = False
        self._closed = False
        dialect.watch(self._changed)

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        deadline = self._clock.monotonic() + wait
        while True:
            self._check()
            self._changed.clear()
            frames = await self._read()
            left = deadline - self._clock.monotonic()
            if frames or self._gap or self._woken or left <= 0:
                break
            await self._clock.wait(self._changed, left)
        gap, self._gap, self._woken = self._gap, False, False
        return frames, gap

    def wake(self) -> None:
        self._woken = True
        self._changed.set()

    async def close(self) -> None:
        self._closed = True
        self._dialect.unwatch(self._changed)
        self._forget(self)
        self._changed.set()

    async def _read(self) -> list[bytes]:
        interruptions = self._dialect.interruptions
        try:
            frames, self._last, missing = await self._dialect.broadcasts_after(self._last, self._origin)
        except BaseException:
            self._gap = True
            raise
        if missing or interruptions != self._interruptions:
            self._interruptions = interruptions
            self._gap = True
        return frames

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("this broadcast receiver is closed")
