"""The outbox: what a transaction publishes to a queue that is not in its database, kept until the queue has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, Row, column, delete, exists, func, insert, literal, or_, select, table, update

from infra.clock import Clock
from infra.db import Database, Transaction
from infra.mq import Message

OUTBOX = table(
    "beneath_outbox",
    column("id"),
    column("kind"),
    column("message_id"),
    column("event"),
    column("ordering_key"),
    column("due_at"),
    column("published_at"),
    column("created_at"),
    column("body"),
)
RELAY = table("beneath_relay", column("name"), column("owner"), column("held_until"))

BATCH = 200
"""How many rows the relay takes at a time."""


class Kind(StrEnum):
    """What the queue is to be told."""

    PUBLISH = "publish"
    CANCEL = "cancel"
    REJECTED = "rejected"
    """A message that the queue refuses for good; kept for people to see."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a message to publish, or the id of one to cancel."""

    id: int
    kind: Kind
    message_id: str
    message: Message | None


class Outbox:
    """The rows, and the right to send them. Rows are sent in the order of their ids, and deleted when sent.

    Whatever was committed before a row was inserted has a smaller id and is visible with it: so reading all unsent
    rows, and sending them in order, keeps the order of each key. A cursor would skip late committers.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def put(self, transaction: Transaction, messages: Sequence[Message], cancelled: Sequence[str]) -> None:
        """Write messages and cancellations into the transaction."""
        now = self._clock.time()
        rows = [_row(Kind.PUBLISH, each.id, now, each) for each in messages]
        rows += [_row(Kind.CANCEL, each, now, None) for each in cancelled]
        await transaction.session.execute(insert(OUTBOX), rows)

    async def standing(self, message_id: str) -> Kind | None:
        """Return what the queue is still to be told about a message last: that it is published, or cancelled."""
        rows = select(OUTBOX.c.kind).where(OUTBOX.c.message_id == message_id)
        async with self._db.read() as session:
            kinds = set((await session.scalars(rows)).all())
        return next((each for each in (Kind.CANCEL, Kind.PUBLISH) if each in kinds), None)

    async def due(self, *, unordered_before: float) -> list[Entry]:
        """Return the next rows to send: all ordered ones and cancellations, and unordered ones from before a time.

        Younger unordered ones are just being sent by the process that committed them.
        """
        earlier = OUTBOX.alias("earlier")
        wanted: list[ColumnElement[bool]] = [
            OUTBOX.c.ordering_key.is_not(None),
            OUTBOX.c.created_at < unordered_before,
        ]
        waits = exists(
            select(literal(1)).where(
                earlier.c.message_id == OUTBOX.c.message_id, earlier.c.kind == Kind.PUBLISH, earlier.c.id < OUTBOX.c.id
            )
        )
        ripe_cancellation = (OUTBOX.c.kind == Kind.CANCEL) & ~waits
        query = (
            select(OUTBOX)
            .where(or_((OUTBOX.c.kind == Kind.PUBLISH) & or_(*wanted), ripe_cancellation))
            .order_by(OUTBOX.c.id)
            .limit(BATCH)
        )
        async with self._db.read() as session:
            return [_entry(row) for row in (await session.execute(query)).all()]

    async def remove(self, ids: Sequence[int]) -> None:
        """Forget rows that the queue has."""
        async with self._db.transaction() as transaction:
            await transaction.session.execute(
                delete(OUTBOX).where(OUTBOX.c.id.in_(ids), OUTBOX.c.kind != Kind.REJECTED)
            )

    async def remove_sent(self, message_ids: Sequence[str]) -> None:
        """Forget the rows of messages that the queue has."""
        async with self._db.transaction() as transaction:
            await transaction.session.execute(
                delete(OUTBOX).where(OUTBOX.c.message_id.in_(message_ids), OUTBOX.c.kind == Kind.PUBLISH)
            )

    async def set_aside(self, message_id: str) -> None:
        """Keep a message that the queue refuses out of the way of the others."""
        async with self._db.transaction() as transaction:
            await transaction.session.execute(
                update(OUTBOX)
                .where(OUTBOX.c.message_id == message_id, OUTBOX.c.kind == Kind.PUBLISH)
                .values(kind=Kind.REJECTED.value)
            )

    async def acquire(self, owner: str, seconds: float) -> bool:
        """Take or keep the right to send ordered rows for `seconds`; False when another process has it."""
        now = self._clock.time()
        free = (RELAY.c.owner == owner) | (RELAY.c.held_until < now)
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(
                update(RELAY).where(RELAY.c.name == "outbox", free).values(owner=owner, held_until=now + seconds)
            )
            return bool(getattr(result, "rowcount", 0))

    async def release(self, owner: str) -> None:
        """Let another process have that right at once."""
        async with self._db.transaction() as transaction:
            await transaction.session.execute(
                update(RELAY).where(RELAY.c.name == "outbox", RELAY.c.owner == owner).values(held_until=0.0)
            )

    async def size(self) -> tuple[int, float | None]:
        """Return how many rows wait, and since when the oldest does (seconds since the epoch)."""
        async with self._db.read() as session:
            count, oldest = (await session.execute(select(func.count(), func.min(OUTBOX.c.created_at)))).one()
        return int(count), None if oldest is None else float(oldest)


def _row(kind: Kind, message_id: str, now: float, message: Message | None) -> dict[str, object]:
    return {
        "kind": kind.value,
        "message_id": message_id,
        "event": message.event if message else "",
        "ordering_key": message.ordering_key if message else None,
        "due_at": message.due_at if message else None,
        "published_at": message.published_at if message else now,
        "created_at": now,
        "body": message.body if message else b"",
    }


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    if row.kind == Kind.CANCEL:
        return Entry(row.id, Kind.CANCEL, row.message_id, None)
    message = Message(
        id=row.message_id,
        event=row.event,
        body=bytes(row.body),
        published_at=row.published_at,
        ordering_key=row.ordering_key,
        due_at=row.due_at,
        dedupe=True,
    )
    return Entry(row.id, Kind.PUBLISH, row.message_id, message)
