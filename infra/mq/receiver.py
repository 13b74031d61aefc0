"""The `BroadcastReceiver` of every driver, over a driver's source of broadcasts."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from infra.clock import Clock
from infra.mq.errors import QueueClosed
from infra.mq.owner import QueueOwner


class BroadcastSource(Protocol):
    """The broadcasts of other processes, as a driver reads them for one receiver."""

    async def read(self) -> tuple[list[bytes], bool]:
        """Return the frames since the last call, in order, and whether some may be lost.

        Raises:
            QueueUnavailable: they cannot be read now; the receiver then reports a gap.
        """
        ...

    def watch(self, changed: asyncio.Event) -> None:
        """Set `changed` whenever there may be something to read, until `unwatch`."""
        ...

    def unwatch(self, changed: asyncio.Event) -> None:
        """Stop setting `changed`."""
        ...


class SourceReceiver:
    """A `BroadcastReceiver` that reads a source whenever it may have changed; `forget` is called at its close."""

    def __init__(
        self, source: BroadcastSource, clock: Clock, owner: QueueOwner, forget: Callable[["SourceReceiver"], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._owner = owner
        self._forget = forget
        self._changed = asyncio.Event()
        self._gap = False
        self._woken = False
        self._closed = False
        source.watch(self._changed)

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
        self._source.unwatch(self._changed)
        self._forget(self)
        self._changed.set()

    async def _read(self) -> list[bytes]:
        try:
            frames, gap = await self._source.read()
        except BaseException:
            self._gap = True
            raise
        self._gap = self._gap or gap
        return frames

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("this broadcast receiver is closed")
        self._owner.check()
