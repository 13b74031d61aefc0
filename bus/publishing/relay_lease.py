"""The relay lease: a lease in the database, whose holder alone relays ordered outbox rows."""

from sqlalchemy import bindparam, column, select, table, update

from infra.clock import Clock
from infra.db import Database

RELAY = table("beneath_relay", column("name"), column("owner"), column("held_until"))

SMALLEST_STEP = 1e-3
"""The least difference, in seconds, between the values of two renewals, also if the clock is set in between."""


class RelayLease:
    """A lease that depends on no wall clock.

    The holder changes the row at every renewal. Another process takes the lease only after the row has not changed for
    the whole lease time, by that process's monotonic clock. So a wall clock that is wrong or is set in any process
    neither blocks the lease nor lets two processes hold it.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        self._seen_at = 0.0
        self._last_written: tuple[str, float] | None = None

    async def acquire(self, owner: str, seconds: float) -> bool:
        """Take or renew the lease for `seconds`, counted from before this call; False if another process has it."""
        # One statement is enough if no other process has changed the row since.
        if self._last_written is not None and await self._replace(self._last_written, owner, seconds):
            return True
        async with self._db.read() as session:
            holder, held_until = (await session.execute(_READ)).one()
        if not self._may_take(owner, holder, held_until, seconds):
            return False
        return await self._replace((holder, held_until), owner, seconds)

    async def release(self, owner: str) -> None:
        """End the lease, so that another process can take it at once."""
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(_RELEASE, {"holder": owner})
            self._last_written = ("", 0.0) if getattr(result, "rowcount", 0) else None

    async def _replace(self, present: tuple[str, float], owner: str, seconds: float) -> bool:
        holder, held_until = present
        # The previous release compares this value with its wall clock; this release only compares it with the last one.
        until = self._clock.time() + seconds
        if abs(until - held_until) < SMALLEST_STEP:
            until += SMALLEST_STEP
        values = {"holder": holder, "held_until": held_until, "owner": owner, "until": until}
        self._last_written = None
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(_REPLACE, values)
            taken = bool(getattr(result, "rowcount", 0))
        if taken:
            self._last_written = (owner, until)
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
