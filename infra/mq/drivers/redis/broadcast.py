"""Broadcasts: sending and reading them.

The server keeps broadcasts in a short stream. Each entry names the number of the one before it, so that a receiver
notices a gap.
"""

import asyncio
from collections.abc import Sequence

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.notifier import RedisNotifier
from infra.mq.drivers.redis.scripts import scripts

PAGE = 500
"""Number of broadcasts that one request reads."""


async def broadcast(core: Core, frames: Sequence[bytes], origin: str) -> None:
    """Send frames to every receiver but those of `origin`."""
    options = core.options
    keys = [core.keys.of("meta"), core.keys.of("news")]
    arguments = (core.keys.broadcasts, origin, options.max_broadcasts, round(options.broadcast_kept * 1000))
    await core.link("broadcast").run(scripts().broadcast, keys, *arguments, *frames)


class RedisBroadcasts:
    """The broadcasts for one receiver, as a `BroadcastSource`; it begins after the broadcast with the number `last`."""

    def __init__(self, core: Core, notifier: RedisNotifier, origin: str, last: bytes) -> None:
        self._core = core
        self._notifier = notifier
        self._origin = origin.encode()
        self._last = last
        self._gap = False

    async def read(self) -> tuple[list[bytes], bool]:
        frames: list[bytes] = []
        last, more = self._last, True
        while more:
            last, entries, more = await read_after(self._core, self._last)
            for number, (_, before, _, origin, _, frame) in entries:
                if before != self._last:
                    self._gap = True
                self._last = number.partition(b"-")[0]
                if origin != self._origin:
                    frames.append(frame)
        if self._last != last:
            self._gap = True
            self._last = last
        gap, self._gap = self._gap, False
        return frames, gap

    def watch(self, changed: asyncio.Event) -> None:
        self._notifier.watch(changed)

    def unwatch(self, changed: asyncio.Event) -> None:
        self._notifier.unwatch(changed)


async def read_after(
    core: Core, number: bytes
) -> tuple[bytes, list[tuple[bytes, tuple[bytes, bytes, bytes, bytes, bytes, bytes]]], bool]:
    """Return the number of the last broadcast of all, the broadcasts after `number`, and whether more follow them.

    With an empty `number` no broadcasts are returned.
    """
    keys = [core.keys.of("meta"), core.keys.of("news")]
    last, entries, more = await core.link("broadcast").run_repeatable(scripts().receive, keys, number, PAGE)
    return last, entries, bool(more)
