"""The holder of the relay lease in one process, shared by the loops of its relay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.publishing.relay_lease import RelayLease
from infra.clock import Clock

LEASE = 3.0
"""Seconds after which another process may take the relay lease if its holder does not renew it."""

RETRY_AFTER = 0.05
"""Seconds to wait before the lease is requested again that another process had."""


class LeaseHolder:
    """Takes the relay lease when the first loop needs it, renews it, and releases it when no loop needs it.

    A loop whose group takes long neither blocks the lease for the other loops nor ends it for them.
    """

    def __init__(self, lease: RelayLease, owner: str, clock: Clock) -> None:
        self._lease = lease
        self._owner = owner
        self._clock = clock
        self._users = 0
        self._lock = asyncio.Lock()
        self._valid_until = float("-inf")
        self._denied_until = float("-inf")
        self._renewal: asyncio.Task[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether this process has the lease now."""
        return self._clock.monotonic() < self._valid_until

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Hold the lease during the block; yields False if another process has it."""
        self._users += 1
        try:
            async with self._lock:
                held = self.valid or await self._take()
            yield held
        finally:
            self._users -= 1
            if not self._users:
                await self._release_unused()

    async def _take(self) -> bool:
        if self._clock.monotonic() < self._denied_until or not await self._acquire():
            return False
        await self._end_renewal()
        self._renewal = asyncio.create_task(self._renew(), name="outbox relay lease")
        return True

    async def _acquire(self) -> bool:
        requested_at = self._clock.monotonic()
        if not await self._lease.acquire(self._owner, LEASE):
            self._valid_until = float("-inf")
            self._denied_until = self._clock.monotonic() + RETRY_AFTER
            return False
        self._valid_until = requested_at + LEASE
        return True

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(LEASE / 3)
            if not await self._acquire():
                return

    async def _release_unused(self) -> None:
        async with self._lock:
            if self._users or self._renewal is None:
                return
            await self._end_renewal()
            self._valid_until = float("-inf")
            await self._lease.release(self._owner)

    async def _end_renewal(self) -> None:
        renewal, self._renewal = self._renewal, None
        if renewal is None:
            return
        renewal.cancel()
        await asyncio.wait((renewal,))
        if not renewal.cancelled():
            renewal.exception()  # the lease then expires, and the next request for it raises the cause
