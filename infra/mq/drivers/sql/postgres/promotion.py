"""Promotion of scheduled messages that are due, in steps, by the workers that claim."""

from functools import partial

import structlog

from infra.mq.drivers.sql.postgres import publishing
from infra.mq.drivers.sql.postgres.connections import QueueConnections
from infra.mq.drivers.sql.postgres.positions import SCHEDULED, Positions
from infra.mq.drivers.sql.postgres.publishing import Position
from infra.mq.errors import QueueClosed, QueueError

HELD_FOR = 0.05
"""Seconds before due messages that other transactions have locked are tried again."""

_log = structlog.stdlib.get_logger(__name__)


class Promoter:
    """The promotion of due messages in steps, each from where the last one ended, with a restart at the end.

    Messages locked by other transactions are skipped, so that later messages do not wait for them.
    """

    def __init__(self, connections: QueueConnections, positions: Positions) -> None:
        self._connections = connections
        self._positions = positions
        self._after: Position | None = None
        self._placed = 0
        """The number of deliveries promoted since the last restart."""

        self._not_before = -float("inf")
        self._expected = False
        """Whether due scheduled messages were seen."""

    def expect(self, *, due: bool) -> None:
        """Record whether due scheduled messages were seen."""
        self._expected = due
        if not due:
            self._after, self._placed = None, 0

    def next_due(self, due_at: float) -> float:
        """Return the time of the next promotion if the first scheduled message is due at `due_at`."""
        return max(due_at, self._not_before)

    def is_due(self, now: float) -> bool:
        """Return whether to promote at the time `now`."""
        return self._expected and now >= self._not_before

    async def step(self, now: float) -> None:
        """Promote a step's worth of messages; a failure is logged and does not prevent claims.

        Raises:
            QueueClosed: the queue is not open.
        """
        begin = self._after or (self._positions.starts([SCHEDULED])[0], 0)
        operation = partial(publishing.promote, now=now, after=begin)
        try:
            placed, after = await self._connections.run(operation, writing=False)
        except QueueClosed:
            raise
        except QueueError as error:
            _log.warning("promotion of scheduled messages failed", error=str(error))
            placed, after = 0, None
        self._placed += placed
        self._after = after
        if after is not None:
            self._positions.claimed({SCHEDULED: after[0]})
        else:
            if not self._placed:
                self._not_before = now + HELD_FOR
            self._placed = 0
            self._expected = False
