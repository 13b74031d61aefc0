"""Broadcasts: sending, and the Redis driver's `BroadcastReceiver`.

The server keeps broadcasts in a short stream. Each entry names the number of the one before it, so that a receiver
notices a gap.
"""

import asyncio
from collections.abc import Callable, Sequence

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.notifier import RedisNotifier
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.errors import QueueClosed

PAGE = 500
"""Number of broadcasts that one request reads."""


async def broadcast(core: Core, frames: Sequence[bytes], origin: str) -> None:
    """Send frames to every receiver but those of `origin`."""
    options = core.options
    keys = [core.keys.of("meta"), core.keys.of("news")]
    arguments = (core.keys.broadcasts, origin, options.broadcasts_kept_at_most, round(options.broadcasts_kept * 1000))
    await core.link("broadcast").run(scripts().broadcast, keys, *arguments, *frames)


class RedisReceiver:
    """A `BroadcastReceiver` of `RedisQueue.receiver`; it starts after the broadcast with the number `last`."""

    def __init__(
        self, core: Core, notifier: RedisNotifier, origin: str, last: bytes, forget: Callable[["RedisReceiver"], None]
    ) -> None:
        self._core = core
        self._notifier = notifier
        self._origin = origin.encode()
        self._last = last
        self._forget = forget
        self._changed = asyncio.Event()
        self._gap = False
        self._woken = False
        self._closed = False
        notifier.watch(self._changed)

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        clock = self._core.clock
        deadline = clock.monotonic() + wait
        while True:
            self._check()
            self._changed.clear()
            frames = await self._read()
            left = deadline - clock.monotonic()
            if frames or self._gap or self._woken or left <= 0:
                break
            await clock.wait(self._changed, left)
        gap, self._gap, self._woken = self._gap, False, False
        return frames, gap

    def wake(self) -> None:
        self._woken = True
        self._changed.set()

    async def close(self) -> None:
        self._closed = True
        self._notifier.unwatch(self._changed)
        self._forget(self)
        self._changed.set()

    async def _read(self) -> list[bytes]:
        frames: list[bytes] = []
        while True:
            try:
                last, entries, more = await read_after(self._core, self._last)
            except BaseException:
                self._gap = True
                raise
            for number, (_, before, _, origin, _, frame) in entries:
                if before != self._last:
                    self._gap = True
                self._last = number.partition(b"-")[0]
                if origin != self._origin:
                    frames.append(frame)
            if not more:
                if self._last != last:
                    self._gap = True
                    self._last = last
                return frames

    def _check(self) -> None:
        self._core.check()
        if self._closed:
            raise QueueClosed("this broadcast receiver is closed")


async def read_after(
    core: Core, number: bytes
) -> tuple[bytes, list[tuple[bytes, tuple[bytes, bytes, bytes, bytes, bytes, bytes]]], bool]:
    """Return the number of the last broadcast of all, the broadcasts after `number`, and whether more follow them.

    With an empty `number` no broadcasts are returned.
    """
    keys = [core.keys.of("meta"), core.keys.of("news")]
    last, entries, more = await core.link("broadcast").run_repeatable(scripts().receive, keys, number, PAGE)
    return last, entries, bool(more)
