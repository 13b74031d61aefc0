"""The outbox: the table in which transactions store messages until the relay has sent them to a broker."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    FromClause,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    case,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import BindParameter

from bus.publishing.outbox_entries import Entry, EntryKind, MessageState, Pending
from bus.publishing.relay_lease import RelayLease
from infra.clock import Clock
from infra.db import Database, Transaction
from infra.mq import Message
from infra.mq.limits import storable_text

T = TypeVar("T")

OUTBOX = Table(
    "beneath_outbox",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
    Column("kind", Text()),
    Column("message_id", Text()),
    Column("event", Text()),
    Column("ordering_key", Text()),
    Column("due_at", Double()),
    Column("published_at", Double()),
    Column("created_at", Double()),
    Column("body", LargeBinary()),
    Column("error", Text()),
    Column("sending", Text()),
)

GROUP = 200
"""The largest number of rows that the relay reads and sends in one group."""

GROUP_BYTES = 1024 * 1024
"""The size of the bodies of such a group, in bytes, at most; a larger row is sent alone."""

CLOCK_MARGIN = 1.0
"""Seconds by which a process may misjudge the queue's clock."""

SEVERAL = "several"
"""The value of `sending` in the row of a delayed message that more than one sender may have sent."""

MAX_ERROR_BYTES = 2_000
"""The longest error that a rejected row stores, in bytes."""


class Outbox:
    """The rows of the outbox, and the relay lease. Rows are sent in the order of their ids, and deleted when sent.

    A row that was committed before another was inserted has a smaller id, and is visible with it. So reading all unsent
    rows and sending them in order keeps the order of each key. A cursor would skip rows that are committed late.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self.lease = RelayLease(db, clock)

    async def put(
        self, transaction: Transaction, messages: Sequence[tuple[EntryKind, Message]], cancelled: Sequence[str]
    ) -> list[Entry]:
        """Insert cancellations, then messages, in the transaction; return the messages as entries without row ids."""
        now = self._clock.time()
        # Cancellations first: an id that is cancelled and published again in one transaction is published in the end.
        if cancelled:
            await transaction.session.execute(_DELETE_UNSENT.where(OUTBOX.c.message_id.in_(cancelled)))
        rows = [_row(EntryKind.CANCEL, each, now, None) for each in cancelled]
        rows += [_row(kind, each.id, now, each) for kind, each in messages]
        await transaction.session.execute(_INSERT, rows)
        return [Entry(0, kind, each.id, each) for kind, each in messages]

    async def state_of(self, message_id: str, now: float) -> MessageState | None:
        """Return the state of a message id by its rows, at `now`, the queue's time; None if it has no row."""
        columns = OUTBOX.c.kind, OUTBOX.c.due_at
        query = select(*columns).where(OUTBOX.c.message_id == message_id).order_by(OUTBOX.c.id)
        state: MessageState | None = None
        async with self._db.read() as session:
            for kind, due_at in (await session.execute(query)).all():
                if kind == EntryKind.CANCEL:
                    state = MessageState.CANCELLED
                elif due_at is not None and due_at > now:
                    state = MessageState.REJECTED if kind == EntryKind.REJECTED else MessageState.SCHEDULED
                else:
                    state = state or MessageState.DUE
        return state

    async def pending(self) -> Pending:
        """Return which kinds of rows wait; reads only the ends of an index."""
        async with self._db.read() as session:
            cancel, publish, first, last = (await session.execute(_PENDING)).one()
        return Pending(
            cancellations=cancel is not None, ordered=publish is not None, first_direct=first, last_direct=last
        )

    async def cancellations(self, limit: int) -> list[Entry]:
        """Return the next cancellations whose message has no row before them."""
        return await self._entries(_CANCELLATIONS, limit)

    async def ordered(self, limit: int) -> list[Entry]:
        """Return the next messages of kind PUBLISH, which the relay sends in order.

        A message that must wait for an earlier cancellation of its id is omitted, with later ones of its ordering key.
        """
        return await self._entries(_ORDERED, limit)

    async def leftover(self, limit: int, last: int) -> list[Entry]:
        """Return the next messages that their process has not pushed, up to the row id `last`."""
        return await self._entries(_LEFTOVER, limit, last)

    async def remove(self, entries: Collection[Entry]) -> None:
        """Delete rows whose message or cancellation the queue has."""
        direct = [each.message_id for each in entries if each.kind is EntryKind.DIRECT]
        others = [each.id for each in entries if each.kind is not EntryKind.DIRECT]
        async with self._db.transaction() as transaction:
            if direct:
                await transaction.session.execute(_REMOVE_DIRECT, {"ids": direct})
            if others:
                await transaction.session.execute(_REMOVE, {"ids": others})

    async def reject(self, entry: Entry, error: str) -> None:
        """Make a row that the queue refuses a rejected row, with the reason."""
        direct = OUTBOX.c.message_id == entry.message_id, _IS_DIRECT
        where = direct if entry.kind is EntryKind.DIRECT else (OUTBOX.c.id == entry.id,)
        values = {"kind": EntryKind.REJECTED.value, "error": storable_text(error, MAX_ERROR_BYTES)}
        async with self._db.transaction() as transaction:
            await transaction.session.execute(update(OUTBOX).where(*where).values(values))

    async def claim(self, sender: str, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Record that `sender` is about to send delayed messages; return the entries without cancelled ones.

        From then on only the queue can cancel such a message. Messages that a running transaction cancels are omitted
        too; a later call returns them if that transaction is rolled back.
        """
        delayed = [each for each in entries if each.is_delayed]
        if not delayed:
            return entries
        claimed: set[int | str] = set()
        async with self._db.transaction() as transaction:
            for statement, keys in _by_kind(_CLAIM, _CLAIM_DIRECT, delayed):
                values = {"keys": keys, "sender": sender}
                keys_claimed: Sequence[Any] = (await transaction.session.scalars(statement, values)).all()
                claimed.update(keys_claimed)
        return [each for each in entries if not each.is_delayed or each.key in claimed]

    async def unclaim(self, sender: str, entries: Sequence[Entry]) -> None:
        """Record that the queue has not stored what `sender` claimed, unless another sender may have sent it."""
        if delayed := [each for each in entries if each.is_delayed]:
            async with self._db.transaction() as transaction:
                for statement, keys in _by_kind(_UNCLAIM, _UNCLAIM_DIRECT, delayed):
                    await transaction.session.execute(statement, {"keys": keys, "sender": sender})

    async def delete_unsent(self, transaction: Transaction, message_id: str) -> bool:
        """Delete a delayed message in the transaction; return False if a process has begun to send it."""
        of_id = OUTBOX.c.message_id == message_id
        query = select(literal(1)).where(of_id, *_DELAYED, OUTBOX.c.sending.is_not(None)).limit(1)
        if (await transaction.session.scalars(query)).first() is not None:
            return False
        result = await transaction.session.execute(_DELETE_UNSENT.where(of_id))
        return bool(getattr(result, "rowcount", 0))

    async def delete_rejected(self, transaction: Transaction, message_id: str) -> None:
        """Delete the rejected rows of a message id in the transaction."""
        await transaction.session.execute(
            delete(OUTBOX).where(OUTBOX.c.message_id == message_id, _is_of(OUTBOX, EntryKind.REJECTED))
        )

    async def time(self) -> float:
        """Return the time of the database's clock, in seconds since the epoch."""
        async with self._db.read() as session:
            return float((await session.execute(_TIME[self._db.dialect.name])).scalar_one())

    async def size(self) -> tuple[int, float | None]:
        """Return the number of unsent rows, and when the oldest was written (seconds since the epoch)."""
        query = select(_COUNT.scalar_subquery(), _OLDEST.scalar_subquery())
        async with self._db.read() as session:
            count, oldest = (await session.execute(query)).one()
        return int(count), None if oldest is None else float(oldest)

    async def _entries(self, query: Select[*tuple[object, ...]], limit: int, last: int = 0) -> list[Entry]:
        async with self._db.read() as session:
            rows = (await session.execute(query, {"limit": limit, "last": last})).all()
        entries: list[Entry] = []
        waiting: set[str] = set()
        for row in rows:
            if not getattr(row, "waits", False) and row.ordering_key not in waiting:
                entries.append(_entry(row))
            elif row.ordering_key is not None:
                waiting.add(row.ordering_key)
        return entries


def _bounded(ids: Select[int]) -> Select[*tuple[object, ...]]:
    """Return the query of the first rows of `ids`, bounded in number and bytes; it returns at least one row."""
    # Sizes come out of the limited query: a window over `length(body)` makes SQLite copy every body.
    limited = ids.add_columns(func.length(OUTBOX.c.body).label("size")).order_by(OUTBOX.c.id)
    first = limited.limit(bindparam("limit", type_=Integer())).subquery()
    upto = func.sum(first.c.size).over(order_by=first.c.id)
    sized = select(first.c.id, upto.label("upto"), (upto - first.c.size).label("before")).subquery()
    fits = or_(sized.c.before == 0, sized.c.upto <= GROUP_BYTES)
    return select(OUTBOX).join(sized, sized.c.id == OUTBOX.c.id).where(fits).order_by(OUTBOX.c.id)


def _earlier(*kinds: EntryKind) -> ColumnElement[bool]:
    """Return the condition that an earlier row of the same message id has one of `kinds`."""
    earlier = OUTBOX.alias("earlier")
    same = earlier.c.message_id == OUTBOX.c.message_id
    return exists(select(literal(1)).where(same, _is_of(earlier, *kinds), earlier.c.id < OUTBOX.c.id))


def _is_of(rows: FromClause, *kinds: EntryKind) -> ColumnElement[bool]:
    """Return the condition that a row, which is found by an id, has one of `kinds`.

    The expression prevents SQLite from using the index on `kind`, in which all waiting rows may have the same kind.
    """
    return (rows.c.kind + "").in_(kinds)


def _any(kind: EntryKind) -> ScalarSelect[int]:
    return select(literal(1)).where(OUTBOX.c.kind == kind.value).limit(1).scalar_subquery()


_TIME: dict[str, Select[Any]] = {
    "postgresql": select(extract("epoch", func.clock_timestamp())),
    "sqlite": select((func.julianday("now") - 2440587.5) * 86400.0),
}
_DIRECT = OUTBOX.c.kind == EntryKind.DIRECT.value
_IS_DIRECT = _is_of(OUTBOX, EntryKind.DIRECT)
_INSERT = insert(OUTBOX)
_PENDING = select(
    _any(EntryKind.CANCEL),
    _any(EntryKind.PUBLISH),
    select(func.min(OUTBOX.c.id)).where(_DIRECT).scalar_subquery(),
    select(func.max(OUTBOX.c.id)).where(_DIRECT).scalar_subquery(),
)
_WAITING = (EntryKind.CANCEL.value, EntryKind.PUBLISH.value, EntryKind.DIRECT.value)
_COUNT = select(func.count()).where(OUTBOX.c.kind.in_(_WAITING))
"""Counts in an index, and reads no rows."""

_FIRST = [select(func.min(OUTBOX.c.id)).where(OUTBOX.c.kind == kind).scalar_subquery() for kind in _WAITING]
_OLDEST = select(func.min(OUTBOX.c.created_at)).where(OUTBOX.c.id.in_(_FIRST))
_CANCELLATIONS = (
    select(OUTBOX)
    .where(OUTBOX.c.kind == EntryKind.CANCEL.value, ~_earlier(EntryKind.PUBLISH, EntryKind.DIRECT))
    .order_by(OUTBOX.c.id)
    .limit(bindparam("limit", type_=Integer()))
)
_ORDERED = _bounded(select(OUTBOX.c.id).where(OUTBOX.c.kind == EntryKind.PUBLISH.value)).add_columns(
    _earlier(EntryKind.CANCEL).label("waits")
)
_LEFTOVER = _bounded(select(OUTBOX.c.id).where(_DIRECT, OUTBOX.c.id <= bindparam("last")))
_REMOVE = delete(OUTBOX).where(
    OUTBOX.c.id.in_(bindparam("ids", expanding=True)), OUTBOX.c.kind != EntryKind.REJECTED.value
)
_REMOVE_DIRECT = delete(OUTBOX).where(OUTBOX.c.message_id.in_(bindparam("ids", expanding=True)), _IS_DIRECT)


_DELAYED = (_is_of(OUTBOX, EntryKind.PUBLISH, EntryKind.DIRECT), OUTBOX.c.due_at.is_not(None))
_DELETE_UNSENT = delete(OUTBOX).where(*_DELAYED, OUTBOX.c.sending.is_(None))
_KEYS: BindParameter[Any] = bindparam("keys", expanding=True)
_SENDER = bindparam("sender", type_=Text())


def _claim(key: ColumnElement[Any], *where: ColumnElement[bool]) -> ReturningUpdate[tuple[Any]]:
    # A row that a running transaction deletes is skipped, so that the other rows do not wait for that transaction.
    found = select(OUTBOX.c.id).where(key.in_(_KEYS), *_DELAYED, *where).with_for_update(skip_locked=True)
    mine = or_(OUTBOX.c.sending.is_(None), OUTBOX.c.sending == _SENDER)
    sending = case((mine, _SENDER), else_=SEVERAL)
    return update(OUTBOX).where(OUTBOX.c.id.in_(found)).values(sending=sending).returning(key)


_CLAIM = _claim(OUTBOX.c.id)
_CLAIM_DIRECT = _claim(OUTBOX.c.message_id, _IS_DIRECT)
_UNCLAIM = update(OUTBOX).where(OUTBOX.c.id.in_(_KEYS), OUTBOX.c.sending == _SENDER).values(sending=None)
_UNCLAIM_DIRECT = (
    update(OUTBOX).where(OUTBOX.c.message_id.in_(_KEYS), _IS_DIRECT, OUTBOX.c.sending == _SENDER).values(sending=None)
)


def _by_kind(others: T, direct: T, entries: Collection[Entry]) -> Iterator[tuple[T, list[int | str]]]:
    """Yield each statement with the keys of its entries, if there are any."""
    for statement, is_direct in ((others, False), (direct, True)):
        if keys := [each.key for each in entries if (each.kind is EntryKind.DIRECT) is is_direct]:
            yield statement, keys


def _row(kind: EntryKind, message_id: str, now: float, message: Message | None) -> dict[str, object]:
    return {
        "kind": kind.value,
        "message_id": message_id,
        "event": message.event if message else "",
        "ordering_key": message.ordering_key if message else None,
        "due_at": message.due_at if message else None,
        "published_at": message.published_at if message else now,
        "created_at": now
        if message is None or message.accepted_since is None
        else message.accepted_since + CLOCK_MARGIN,
        "body": message.body if message else b"",
    }


def _entry(row: Row[*tuple[object, ...]]) -> Entry:
    if row.kind == EntryKind.CANCEL:
        return Entry(row.id, EntryKind.CANCEL, row.message_id, None)
    message = Message(
        id=row.message_id,
        event=row.event,
        body=bytes(row.body),
        published_at=row.published_at,
        ordering_key=row.ordering_key,
        due_at=row.due_at,
        dedupe=True,
        accepted_since=row.created_at - CLOCK_MARGIN,
    )
    return Entry(row.id, EntryKind(row.kind), row.message_id, message)
