"""Rows of the outbox that the queue refused for good: to look at, to send again, or to delete."""

import builtins
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.sql.dml import Delete, Update

from bus.publishing.outbox import OUTBOX
from bus.publishing.outbox_entries import EntryKind
from infra.db import Database

STEP = 1_000
"""How many rows one transaction changes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that was set aside, and why."""

    id: int
    event: str
    """The wire name; empty for a cancellation."""

    message_id: str
    ordering_key: str | None
    size: int
    """Of its message, in bytes."""

    created_at: float
    due_at: float | None
    """Both in seconds since the epoch."""

    error: str


class RejectedRows:
    """The rejected rows of one database. It needs no queue."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def count(self) -> int:
        """Return how many there are."""
        async with self._db.read() as session:
            return (await session.scalars(select(func.count()).select_from(OUTBOX).where(_REJECTED))).one()

    async def list(self, *, limit: int = 100, after: int = 0) -> builtins.list[RejectedRow]:
        """Return at most `limit` rows, the first to be committed first, those after the row `after`."""
        columns = (
            OUTBOX.c.id,
            OUTBOX.c.event,
            OUTBOX.c.message_id,
            OUTBOX.c.ordering_key,
            func.length(OUTBOX.c.body).label("size"),
            OUTBOX.c.created_at,
            OUTBOX.c.due_at,
            func.coalesce(OUTBOX.c.error, "").label("error"),
        )
        query = select(*columns).where(_REJECTED, OUTBOX.c.id > after).order_by(OUTBOX.c.id).limit(limit)
        async with self._db.read() as session:
            return [RejectedRow(**row) for row in (await session.execute(query)).mappings()]

    async def missing(self, ids: Collection[int]) -> builtins.list[int]:
        """Return those of `ids` that no rejected row has."""
        async with self._db.read() as session:
            found = (await session.scalars(select(OUTBOX.c.id).where(_REJECTED, OUTBOX.c.id.in_(ids)))).all()
        return sorted(set(ids) - set(found))

    async def retry(self, ids: Collection[int] | None = None) -> int:
        """Let the relay send rows again, all with None; return how many. What is not rejected is skipped.

        Their ids and their places in the outbox are as they were, but what was behind them may be handled already: an
        ordered event may come after later ones of its key.
        """
        # A cancellation has no body; all others are carried by the relay.
        kind = case((func.length(OUTBOX.c.body) == 0, EntryKind.CANCEL.value), else_=EntryKind.PUBLISH.value)
        return await self._change(update(OUTBOX).values(kind=kind, error=None), ids)

    async def discard(self, ids: Collection[int] | None = None) -> int:
        """Delete rows for good, all with None; return how many. What is not rejected is skipped."""
        return await self._change(delete(OUTBOX), ids)

    async def _change(self, statement: Update | Delete, ids: Collection[int] | None) -> int:
        """Change the rows in steps, so that no transaction grows with their number."""
        changed = 0
        async with self._db.read() as session:
            last = (await session.scalars(select(func.max(OUTBOX.c.id)).where(_REJECTED))).one()
        wanted = None if ids is None else sorted(ids)
        while last is not None:
            step = select(OUTBOX.c.id).where(_REJECTED, OUTBOX.c.id <= last).order_by(OUTBOX.c.id).limit(STEP)
            if wanted is not None:
                some, wanted = wanted[:STEP], wanted[STEP:]
                if not some:
                    break
                step = select(OUTBOX.c.id).where(_REJECTED, OUTBOX.c.id.in_(some))
            async with self._db.transaction() as transaction:
                chosen = (await transaction.session.scalars(step)).all()
                if chosen:
                    await transaction.session.execute(statement.where(_REJECTED, OUTBOX.c.id.in_(chosen)))
            changed += len(chosen)
            if wanted is None and not chosen:
                break
        return changed


_REJECTED = OUTBOX.c.kind == EntryKind.REJECTED.value
