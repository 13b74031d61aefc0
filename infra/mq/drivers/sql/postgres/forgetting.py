"""Removal of expired accepted ids and broadcast frames, in steps."""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres import broadcasting, publishing
from infra.mq.drivers.sql.postgres.connections import QueueConnections

STEPS = 50
"""The maximum number of steps in a call for each kind of row; a step removes a thousand rows."""

ANEW_EVERY = 600.0
"""Seconds after which a process starts from the beginning again, for rows that were committed late."""

Step = Callable[[Driver, float, float], Awaitable[float | None]]


class Forgetter:
    """The removal of expired rows, which continues each time from where the last call ended.

    While another transaction stays open, removed rows stay in the indexes, and a search from the start would read them
    all.

    Args:
        connections: The queue's connections to the server.
        dedupe_window: Seconds for which accepted ids are stored.
        broadcast_kept: Seconds for which frames are stored.
    """

    def __init__(self, connections: QueueConnections, dedupe_window: float, broadcast_kept: float) -> None:
        self._connections = connections
        self._kinds: tuple[tuple[Step, float], ...] = (
            (publishing.forget_ids, dedupe_window),
            (publishing.forget_former_ids, dedupe_window),
            (broadcasting.forget_frames, broadcast_kept),
        )
        self._after: dict[Step, float] = {}
        self._anew_at = 0.0

    async def forget(self, now: float) -> None:
        """Remove rows that have expired at the queue's time `now`, at most `STEPS` steps of each kind.

        Raises:
            QueueError: a step failed; the completed steps stand.
        """
        if time.monotonic() >= self._anew_at:
            self._after.clear()
            self._anew_at = time.monotonic() + ANEW_EVERY
        for step, kept in self._kinds:
            before = now - kept
            for _ in range(STEPS):
                after = self._after.get(step, -math.inf)
                last = await self._connections.run(partial(_forget, step=step, before=before, after=after))
                self._after[step] = before if last is None else last
                if last is None:
                    break


async def _forget(driver: Driver, step: Step, before: float, after: float) -> float | None:
    return await step(driver, before, after)
