"""The right to send the outbox's ordered rows: one process at a time has it."""

from sqlalchemy import bindparam, column, select, table, update

from infra.clock import Clock
from infra.db import Database

RELAY = table("beneath_relay", column("name"), column("owner"), column("held_until"))

SMALLEST_STEP = 1e-3
"""By how many seconds two renewals in a row differ at least, whatever the clock does in between."""


class SendingRight:
    """A lease in the database that no clock of another process can prolong or end.

    The holder changes the row at every renewal. Another process takes the right only after it has watched the row for
    the whole lease, by its own monotonic clock, without a change. So a wall clock that is wrong, or is set, in any
    process, neither keeps the right from the living nor gives it to two.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        self._seen_at = 0.0
        self._left: tuple[str, float] | None = None

    async def acquire(self, owner: str, seconds: float) -> bool:
        """Take or keep the right for `seconds` from before this call; False when another process has it."""
        # As it was left, unless another process took it: then one statement does.
        if self._left is not None and await self._replace(self._left, owner, seconds):
            return True
        async with self._db.read() as session:
            holder, held_until = (await session.execute(_READ)).one()
        if not self._may_take(owner, holder, held_until, seconds):
            return False
        return await self._replace((holder, held_until), owner, seconds)

    async def release(self, owner: str) -> None:
        """Let another process have the right at once."""
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(_RELEASE, {"holder": owner})
            self._left = ("", 0.0) if getattr(result, "rowcount", 0) else None

    async def _replace(self, present: tuple[str, float], owner: str, seconds: float) -> bool:
        holder, held_until = present
        # Read by the release before this one, which goes by wall clocks; for this one it only has to be another value.
        until = self._clock.time() + seconds
        if abs(until - held_until) < SMALLEST_STEP:
            until += SMALLEST_STEP
        values = {"holder": holder, "held_until": held_until, "owner": owner, "until": until}
        self._left = None
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(_REPLACE, values)
            taken = bool(getattr(result, "rowcount", 0))
        if taken:
            self._left = (owner, until)
        return taken

    def _may_take(self, owner: str, holder: str, held_until: float, seconds: float) -> bool:
        if holder in ("", owner) or held_until == 0:
            return True
        now = self._clock.monotonic()
        if self._seen != (holder, held_until):
            self._seen, self._seen_at = (holder, held_until), now
        return now - self._seen_at >= seconds


_OUTBOX = RELAY.c.name == "outbox"
_READ = select(RELAY.c.owner, RELAY.c.held_until).where(_OUTBOX)
_REPLACE = (
    update(RELAY)
    .where(_OUTBOX, RELAY.c.owner == bindparam("holder"), RELAY.c.held_until == bindparam("held_until"))
    .values(owner=bindparam("owner"), held_until=bindparam("until"))
)
_RELEASE = update(RELAY).where(_OUTBOX, RELAY.c.owner == bindparam("holder")).values(owner="", held_until=0.0)
