"""Scheduled messages that are due are promoted in steps, by the workers that claim."""

from functools import partial

from infra.mq.drivers.sql.postgres import publishing
from infra.mq.drivers.sql.postgres.connections import Connections
from infra.mq.drivers.sql.postgres.publishing import START, Position

HELD_FOR = 0.05
"""Seconds for which messages are left alone that are due, but held by other transactions."""


class Promoter:
    """Goes through what is due, a step at a time, and begins anew at the end.

    What other transactions hold is passed over, so that nothing behind it waits for it.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._after: Position = START
        self._placed = 0
        """How many deliveries were placed since the start."""

        self._not_before = -float("inf")
        self._expected = False
        """Whether scheduled messages were seen that are due."""

    def expect(self, *, due: bool) -> None:
        """Note whether scheduled messages were seen that are due."""
        self._expected = due
        if not due:
            self._after, self._placed = START, 0

    def next_due(self, due_at: float) -> float:
        """Return when to promote, where the first scheduled message is due at `due_at`."""
        return max(due_at, self._not_before)

    def is_due(self, now: float) -> bool:
        """Whether there is anything to promote at the time `now`."""
        return self._expected and now >= self._not_before

    async def step(self, now: float) -> None:
        """Promote a step's worth.

        Raises:
            QueueError: nothing was promoted; the next claim tries again.
        """
        operation = partial(publishing.promote, now=now, after=self._after)
        placed, after = await self._connections.run(operation, writing=False)
        self._placed += placed
        self._after = after or START
        if after is None:
            if not self._placed:
                self._not_before = now + HELD_FOR
            self._placed = 0
            self._expected = False
