"""The rejected rows of the outbox: lists, retries and discards them, for `beneath bus outbox`."""

import builtins
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.sql.dml import Delete, Update

from bus.publishing.outbox import OUTBOX
from bus.publishing.outbox_entries import EntryKind
from infra.db import Database

STEP = 1_000
"""The largest number of rows that one transaction changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """An outbox row whose message the queue refused permanently, with the reason."""

    id: int
    event: str
    """The wire name; empty for a cancellation."""

    message_id: str
    ordering_key: str | None
    size: int
    """The size of the encoded message, in bytes."""

    created_at: float
    due_at: float | None
    """The due time, None if the message was not delayed; both times are in seconds since the epoch."""

    error: str


class RejectedRows:
    """The rejected rows of one database; needs no queue."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def count(self) -> int:
        """Return the number of rejected rows."""
        async with self._db.read() as session:
            return (await session.scalars(select(func.count()).select_from(OUTBOX).where(_REJECTED))).one()

    async def list(self, *, limit: int = 100, after: int = 0) -> builtins.list[RejectedRow]:
        """Return at most `limit` rows with ids above `after`, in the order of their ids."""
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
        """Return those of `ids` that are not ids of rejected rows."""
        async with self._db.read() as session:
            found = (await session.scalars(select(OUTBOX.c.id).where(_REJECTED, OUTBOX.c.id.in_(ids)))).all()
        return sorted(set(ids) - set(found))

    async def retry(self, ids: Collection[int] | None = None) -> int:
        """Let the relay send rows again, None for all; return how many. Rows that are not rejected are skipped.

        The rows keep their ids and order, but later rows may have been sent meanwhile: an ordered event may be handled
        after later events of its key.
        """
        # Only a cancellation has no body. The relay sends the others in order, because no process can push them.
        kind = case((func.length(OUTBOX.c.body) == 0, EntryKind.CANCEL.value), else_=EntryKind.PUBLISH.value)
        return await self._change(update(OUTBOX).values(kind=kind, error=None), ids)

    async def discard(self, ids: Collection[int] | None = None) -> int:
        """Delete rows, None for all; return how many. Rows that are not rejected are skipped."""
        return await self._change(delete(OUTBOX), ids)

    async def _change(self, statement: Update | Delete, ids: Collection[int] | None) -> int:
        """Change the rows in several transactions of bounded size."""
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
