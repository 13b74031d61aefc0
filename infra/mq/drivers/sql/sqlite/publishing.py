"""Messages on their way in: fan-out, delays, dedupe."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from json import dumps

from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.types import Message

PRUNED_AT_ONCE = 100
"""How many outdated rows a call removes along the way, beside as many as it adds."""

_INSERT_DELIVERY = """
INSERT INTO beneath_delivery
    (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_OPEN_MAILBOX = """
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn) VALUES (?, ?, 0, ?, ?)
ON CONFLICT DO NOTHING
"""
_ROUTES = """
SELECT s.id, s.ordered
FROM beneath_route AS r CROSS JOIN beneath_subscription AS s ON s.id = r.subscription
WHERE r.event = ? ORDER BY r.subscription
"""
_DUE_MESSAGES = """
SELECT message_id FROM beneath_delivery INDEXED BY beneath_delivery_scheduled
WHERE state = 3 AND due_at <= ? ORDER BY due_at, id LIMIT ?
"""
_DUE_DELIVERIES = """
SELECT d.id, d.due_at, d.subscription, s.ordered, d.mailbox
FROM json_each(?) AS m
CROSS JOIN beneath_delivery AS d ON d.message_id = m.value
CROSS JOIN beneath_subscription AS s ON s.id = d.subscription
WHERE d.state = 3 AND d.due_at <= ?
"""
_MAKE_READY = "UPDATE beneath_delivery SET state = 0 WHERE id IN (SELECT value FROM json_each(?))"
_INTO_MAILBOX = "UPDATE beneath_delivery SET id = ?, state = 4 WHERE id = ?"

_ACCEPT_ID = """
INSERT INTO beneath_dedupe (id, at) VALUES (:id, :now)
ON CONFLICT (id) DO UPDATE SET at = :now WHERE at <= :outdated
"""
_PRUNE_IDS = """
DELETE FROM beneath_dedupe WHERE id IN (SELECT id FROM beneath_dedupe WHERE at <= ? ORDER BY at LIMIT ?)
"""
_CANCEL = "DELETE FROM beneath_delivery WHERE state = 3 AND message_id = ? AND due_at > ?"
_SCHEDULED = "SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 3 AND message_id = ? AND due_at > ?)"

Routes = dict[str, list[tuple[int, int]]]
DeliveryRow = tuple[int, int, int, float, float, str, str, str | None, str | None, bytes]
MailboxRow = tuple[int, str, float, int]


def publish(db: sqlite3.Connection, messages: Sequence[Message], now: float, dedupe_window: float) -> None:
    """Store one delivery of every message for each subscription of its event."""
    accepted = _without_duplicates(db, messages, now, dedupe_window)
    routes: Routes = {event: db.execute(_ROUTES, (event,)).fetchall() for event in {it.event for it in accepted}}
    count = sum(len(routes[it.event]) for it in accepted)
    if not count:
        return
    if any(ordered for subscriptions in routes.values() for _, ordered in subscriptions):
        # What became due before this takes its place before it.
        promote_all(db, now)
    rows, mailboxes = _rows_of(accepted, routes, now, reserve(db, count))
    db.executemany(_INSERT_DELIVERY, rows)
    if mailboxes:
        open_mailboxes(db, mailboxes)


def open_mailboxes(db: sqlite3.Connection, mailboxes: Iterable[MailboxRow]) -> None:
    """Let mailboxes be claimed, unless they exist and have a state of their own."""
    db.executemany(_OPEN_MAILBOX, mailboxes)


def promote(db: sqlite3.Connection, now: float, limit: int = 200) -> bool:
    """Let scheduled messages that are due take their places; True if there may be more of them.

    All deliveries of a message are promoted together, so that a cancellation finds all of them or none.
    """
    due = [message_id for (message_id,) in db.execute(_DUE_MESSAGES, (now, limit))]
    if not due:
        return False
    found = db.execute(_DUE_DELIVERIES, (dumps(list(dict.fromkeys(due))), now)).fetchall()
    found.sort(key=lambda row: (row[1], row[0]))
    db.execute(_MAKE_READY, (dumps([row[0] for row in found if not row[3]]),))
    into_mailboxes = [row for row in found if row[3]]
    if into_mailboxes:
        first = reserve(db, len(into_mailboxes))
        db.executemany(_INTO_MAILBOX, [(first + place, row[0]) for place, row in enumerate(into_mailboxes)])
        open_mailboxes(db, [(row[2], row[4], row[1], first + place) for place, row in enumerate(into_mailboxes)])
    return len(due) == limit


def promote_all(db: sqlite3.Connection, now: float) -> None:
    """Let every scheduled message that is due take its place."""
    while promote(db, now):
        pass


def cancel(db: sqlite3.Connection, message_id: str, now: float) -> bool:
    """Delete a scheduled message that is not due yet; False if there is none."""
    return db.execute(_CANCEL, (message_id, now)).rowcount > 0


def scheduled(db: sqlite3.Connection, message_id: str, now: float) -> bool:
    """Return whether `cancel` would find something."""
    return bool(db.execute(_SCHEDULED, (message_id, now)).fetchone()[0])


def _rows_of(
    messages: Sequence[Message], routes: Routes, now: float, number: int
) -> tuple[list[DeliveryRow], Collection[MailboxRow]]:
    rows: list[DeliveryRow] = []
    mailboxes: dict[tuple[int, str], MailboxRow] = {}
    for it in messages:
        due_at = now if it.due_at is None else it.due_at
        for subscription, ordered in routes[it.event]:
            key, mailbox, state = it.ordering_key, None, 0
            if ordered:
                mailbox, state = key or "", 4
            if due_at > now:
                state = 3
            elif mailbox is not None:
                mailboxes.setdefault((subscription, mailbox), (subscription, mailbox, due_at, number))
            rows.append((number, subscription, state, due_at, it.published_at, it.id, it.event, key, mailbox, it.body))
            number += 1
    return rows, mailboxes.values()


def _without_duplicates(
    db: sqlite3.Connection, messages: Sequence[Message], now: float, window: float
) -> Sequence[Message]:
    if not any(it.dedupe for it in messages):
        return messages
    outdated = now - window

    def is_new(id_: str) -> bool:
        return db.execute(_ACCEPT_ID, {"id": id_, "now": now, "outdated": outdated}).rowcount > 0

    accepted = [it for it in messages if not it.dedupe or is_new(it.id)]
    db.execute(_PRUNE_IDS, (outdated, len(messages) + PRUNED_AT_ONCE))
    return accepted
