"""The memory driver's broadcasts."""

import asyncio
from collections import deque
from collections.abc import Sequence

RECEIVER_LIMIT = 10_000
"""Number of unread frames that a receiver keeps; above it the oldest are dropped and a gap is reported."""


class MemoryBroadcasts:
    """The broadcasts for one receiver, as a `BroadcastSource`."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque(maxlen=RECEIVER_LIMIT)
        self._gap = False
        self._watching: set[asyncio.Event] = set()

    async def read(self) -> tuple[list[bytes], bool]:
        frames, gap = list(self._frames), self._gap
        self._frames.clear()
        self._gap = False
        return frames, gap

    def watch(self, changed: asyncio.Event) -> None:
        self._watching.add(changed)

    def unwatch(self, changed: asyncio.Event) -> None:
        self._watching.discard(changed)

    def add(self, frames: Sequence[bytes]) -> None:
        """Add broadcast frames; drop the oldest above `RECEIVER_LIMIT`."""
        self._gap = self._gap or len(self._frames) + len(frames) > RECEIVER_LIMIT
        self._frames.extend(frames)
        for changed in self._watching:
            changed.set()
