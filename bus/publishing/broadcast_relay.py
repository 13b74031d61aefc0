"""The relay of broadcasts: sends those of committed transactions, at most once, and bounded in number and size."""

from collections import deque
from collections.abc import Sequence

import structlog

from bus.metrics import BusMetrics
from bus.publishing.relay_loop import RelayLoop
from bus.publishing.subscription_cache import SubscriptionCache
from infra.clock import Clock
from infra.failures import describe
from infra.mq import MessageQueue, QueueRejected

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GROUP = 100
"""The largest number of frames in one request."""

MAX_FRAMES = 10_000
"""The largest number of waiting frames; beyond it the oldest are dropped."""

MAX_BYTES = 16 * 1024 * 1024
"""The size of all waiting frames together, in bytes, at most; then the oldest are dropped."""

RETRY_EVERY = 60.0
"""Seconds after which the loop checks for waiting frames without being woken."""


class BroadcastRelay:
    """Holds the frames that wait to be sent, and the loop that sends them."""

    def __init__(
        self, mq: MessageQueue, subscriptions: SubscriptionCache, clock: Clock, metrics: BusMetrics, *, origin: str
    ) -> None:
        self.loop = RelayLoop("broadcast relay", self._send, clock, every=RETRY_EVERY)
        self._mq = mq
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._origin = origin
        self._frames: deque[tuple[str, bytes]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frames: Sequence[tuple[str, bytes]]) -> None:
        """Send frames, each with the name of its event, in order; skip those of events without broadcast listeners.

        The frames are dropped if the queue is unavailable when they are sent.
        """
        if not frames:
            return
        self._frames.extend(frames)
        self._bytes += sum(len(frame) for _, frame in frames)
        dropped = 0
        while len(self._frames) > MAX_FRAMES or self._bytes > MAX_BYTES:
            self._bytes -= len(self._frames.popleft()[1])
            dropped += 1
        if dropped:
            self._dropped(dropped, "too many wait for the queue")
        self.loop.wake()

    async def _send(self) -> None:
        while self._frames and not self.loop.stopping:
            group = [self._frames.popleft() for _ in range(min(GROUP, len(self._frames)))]
            self._bytes -= sum(len(frame) for _, frame in group)
            await self._send_group(group)
            self.loop.progressed()

    async def _send_group(self, group: Sequence[tuple[str, bytes]]) -> None:
        if not self._subscriptions.fresh:
            try:
                await self._subscriptions.refresh()
            except Exception as error:
                self._dropped(len(group), describe(error))
                raise
        if wanted := [frame for name, frame in group if self._subscriptions.broadcast(name)]:
            await self._broadcast(wanted)

    async def _broadcast(self, group: Sequence[bytes]) -> None:
        try:
            await self._mq.broadcast(group, origin=self._origin)
        except QueueRejected as error:
            if len(group) == 1:
                self._dropped(1, describe(error))
                return
            for frame in group:
                await self._broadcast([frame])
        except Exception as error:
            self._dropped(len(group), describe(error))
            raise
        else:
            self._metrics.broadcasts_sent += len(group)

    def _dropped(self, count: int, reason: str) -> None:
        self._metrics.broadcasts_dropped += count
        log.warning("broadcasts dropped", count=count, reason=reason)
