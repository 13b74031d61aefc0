"""The right to send, as the loops of one process's relay share it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from infra.clock import Clock

LEASE = 3.0
"""Seconds after which the right to send passes on if its holder does not renew it."""

RETRY_AFTER = 0.05
"""Seconds for which an answer that another process has the right is taken for true."""


class Right(Protocol):
    """A lease in the database; see `bus.sending_right`."""

    async def acquire(self, owner: str, seconds: float) -> bool:
        """Take or keep the right; False when another process has it."""
        ...

    async def release(self, owner: str) -> None:
        """Let another process have the right at once."""
        ...


class SharedRight:
    """Takes the right when the first loop needs it, renews it, and releases it when no loop does.

    So a loop that is stuck with its group neither keeps the right from the other loops, nor ends it for them.
    """

    def __init__(self, right: Right, owner: str, clock: Clock) -> None:
        self._right = right
        self._owner = owner
        self._clock = clock
        self._users = 0
        self._lock = asyncio.Lock()
        self._valid_until = float("-inf")
        self._denied_until = float("-inf")
        self._renewal: asyncio.Task[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether this process has the right now."""
        return self._clock.monotonic() < self._valid_until

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Surround a block in which this process has the right; False if another process has it."""
        self._users += 1
        try:
            async with self._lock:
                held = self.valid or await self._take()
            yield held
        finally:
            self._users -= 1
            if not self._users:
                await self._give_back()

    async def _take(self) -> bool:
        if self._clock.monotonic() < self._denied_until or not await self._acquire():
            return False
        await self._end_renewal()
        self._renewal = asyncio.create_task(self._renew(), name="outbox relay lease")
        return True

    async def _acquire(self) -> bool:
        asked = self._clock.monotonic()
        if not await self._right.acquire(self._owner, LEASE):
            self._valid_until = float("-inf")
            self._denied_until = self._clock.monotonic() + RETRY_AFTER
            return False
        self._valid_until = asked + LEASE
        return True

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(LEASE / 3)
            if not await self._acquire():
                return

    async def _give_back(self) -> None:
        async with self._lock:
            if self._users or self._renewal is None:
                return
            await self._end_renewal()
            self._valid_until = float("-inf")
            await self._right.release(self._owner)

    async def _end_renewal(self) -> None:
        renewal, self._renewal = self._renewal, None
        if renewal is None:
            return
        renewal.cancel()
        await asyncio.wait((renewal,))
        if not renewal.cancelled():
            renewal.exception()  # without a renewal the right ends by itself, and the next group says why
