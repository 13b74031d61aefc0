"""The notifications that this process sends: at once when it is idle, and less often the more changes there are."""

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable

import structlog

from infra.clock import Clock
from infra.mq.errors import QueueError

SHORTEST_PAUSE = 0.0015
"""Seconds from a notification of a single change to the next notification."""

LONGEST_PAUSE = 0.02
"""Seconds between two notifications at most."""

PAUSE_FACTOR = 3.0
"""The shortest pause after a notification, as a multiple of the time that the notification took."""

_log = structlog.stdlib.get_logger(__name__)


class NotificationSender:
    """Sends a notification for each requested change; changes requested during a pause share one.

    With NOTIFY all COMMITs of the server take one lock in turn, and every waiting worker polls the queue. So the pause
    after a notification grows with the square root of the number of changes that it announced, and with the time that
    the server took: at 200 changes a second each is announced at once, at 2,000 there are about 220 notifications a
    second, and from 9,000 on 50.

    Args:
        send: Sends one notification.
        clock: The clock of the pauses.
    """

    def __init__(self, send: Callable[[], Awaitable[object]], clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._changes = 0
        self._open = False
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Allow notifications."""
        self._open = True

    async def close(self) -> None:
        """Send no more notifications; cancel the one in flight."""
        self._open = False
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait((task,))

    def request(self) -> None:
        """Notify the other processes of a change soon."""
        self._changes += 1
        if self._task is None and self._open:
            # In an empty context: the caller's transaction must not be ambient for the notifications of later callers.
            self._task = asyncio.get_running_loop().create_task(self._work_off(), context=contextvars.Context())

    async def _work_off(self) -> None:
        try:
            while self._changes:
                changes, self._changes = self._changes, 0
                began = self._clock.monotonic()
                try:
                    await self._send()
                except QueueError as error:
                    _log.debug("notification failed", error=str(error))
                await self._clock.sleep(_pause(changes, self._clock.monotonic() - began))
        finally:
            self._task = None


def _pause(changes: int, took: float) -> float:
    return min(LONGEST_PAUSE, max(SHORTEST_PAUSE * math.sqrt(changes), PAUSE_FACTOR * took))
