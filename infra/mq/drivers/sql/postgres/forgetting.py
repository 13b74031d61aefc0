"""Accepted ids and broadcast frames are forgotten when they are old, in steps."""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres import broadcasting, publishing
from infra.mq.drivers.sql.postgres.connections import Connections

STEPS = 50
"""How many steps a call makes at most for each kind; each forgets a thousand."""

ANEW_EVERY = 600.0
"""Seconds after which a process looks from the start again, for what was committed later than it could know."""

Step = Callable[[Driver, float, float], Awaitable[float | None]]


class Forgetter:
    """Goes on from where it ended: while a transaction is left open, what was forgotten stays in the indexes.

    Args:
        connections: To the server.
        dedupe_window: For how many seconds accepted ids are kept.
        broadcast_kept: For how many seconds frames are kept.
    """

    def __init__(self, connections: Connections, dedupe_window: float, broadcast_kept: float) -> None:
        self._connections = connections
        self._kinds: tuple[tuple[Step, float], ...] = (
            (publishing.forget_ids, dedupe_window),
            (publishing.forget_former_ids, dedupe_window),
            (broadcasting.forget_frames, broadcast_kept),
        )
        self._after: dict[Step, float] = {}
        self._anew_at = 0.0

    async def forget(self, now: float) -> None:
        """Forget what is old at the queue's time `now`, within bounds.

        Raises:
            QueueError: the steps that were carried out stand.
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
