"""The memory driver's `BroadcastReceiver`."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from infra.clock import Clock
from infra.mq.errors import QueueClosed

RECEIVER_LIMIT = 10_000
"""Number of unread frames that a receiver keeps; above it the oldest are dropped and a gap is reported."""


class MemoryReceiver:
    """A `BroadcastReceiver` of `MemoryQueue.receiver`."""

    def __init__(self, origin: str, clock: Clock, leave: Callable[["MemoryReceiver"], None]) -> None:
        self.origin = origin
        self._clock = clock
        self._leave = leave
        self._frames: deque[bytes] = deque(maxlen=RECEIVER_LIMIT)
        self._arrived = asyncio.Event()
        self._gap = False
        self._closed = False

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        self._check()
        if not self._frames and wait > 0:
            await self._clock.wait(self._arrived, wait)
            self._check()
        frames, gap = list(self._frames), self._gap
        self._frames.clear()
        self._arrived.clear()
        self._gap = False
        return frames, gap

    def wake(self) -> None:
        self._arrived.set()

    async def close(self) -> None:
        self.shut()

    def shut(self) -> None:
        """Stop receiving, and make a waiting `receive` raise QueueClosed."""
        self._closed = True
        self._leave(self)
        self._arrived.set()

    def take(self, frames: Sequence[bytes]) -> None:
        """Add broadcast frames; drop the oldest above `RECEIVER_LIMIT`."""
        self._gap = self._gap or len(self._frames) + len(frames) > RECEIVER_LIMIT
        self._frames.extend(frames)
        self._arrived.set()

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("this broadcast receiver is closed")
