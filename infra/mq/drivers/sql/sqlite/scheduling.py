"""Scheduled messages on SQLite: promotion when they are due, and cancellation before that.

Only `due_at` decides whether a message is due, under the write lock and by a clock that never goes back. So either all
its deliveries are due or none, although each subscription's deliveries are promoted with the first claim of it.
"""

import sqlite3
from collections.abc import Collection
from json import dumps

from infra.mq.drivers.sql.sqlite.mailboxes import open_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve

PROMOTED_AT_ONCE = 200
"""The maximum number of deliveries that a claim promotes, over all its subscriptions."""

LEAST_PROMOTED = 10
"""The minimum of that limit for each subscription."""

PROMOTED_BYTES = 4 * 1024 * 1024
"""The size of promoted bodies of a subscription, in bytes, after which a claim stops; promotion rewrites rows."""

HAS_DUE = """
EXISTS (
    SELECT 1 FROM beneath_delivery INDEXED BY beneath_delivery_scheduled
    WHERE state = 3 AND subscription = s.id AND due_at <= :now
)
"""
"""The SQL condition that the subscription `s` has scheduled deliveries that are due at `:now`."""

_DUE = """
SELECT id, due_at, mailbox, length(body) FROM beneath_delivery INDEXED BY beneath_delivery_scheduled
WHERE state = 3 AND subscription = ? AND due_at <= ? ORDER BY due_at, id LIMIT ?
"""
_IN_MAILBOX = """
SELECT EXISTS (
    SELECT 1 FROM beneath_delivery INDEXED BY beneath_delivery_scheduled_mailbox
    WHERE state = 3 AND subscription = ? AND mailbox = ? AND due_at <= ?
)
"""
_MAKE_READY = "UPDATE beneath_delivery SET state = 0 WHERE id IN (SELECT value FROM json_each(?))"
_INTO_MAILBOX = "UPDATE beneath_delivery SET id = ?, state = 4 WHERE id = ?"
_CANCEL = "DELETE FROM beneath_delivery WHERE state = 3 AND message_id = ? AND due_at > ? RETURNING event"
_FORGET = "DELETE FROM beneath_accepted WHERE event = ? AND id = ?"
_FORGET_FORMER = "DELETE FROM beneath_dedupe WHERE id = ?"
_SCHEDULED = "SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 3 AND message_id = ? AND due_at > ?)"


class Overdue:
    """The mailboxes with scheduled deliveries that are due but not promoted yet.

    A delivery added to such a mailbox is stored as scheduled and due now, so that it is promoted behind them.
    """

    def __init__(self, db: sqlite3.Connection, behind: Collection[int], now: float) -> None:
        """Restrict the queries to `behind`, the subscriptions that have scheduled deliveries that are due."""
        self._db = db
        self._now = now
        self._behind = behind
        self._known: dict[tuple[int, str], bool] = {}

    def in_mailbox(self, subscription: int, mailbox: str) -> bool:
        """Return whether that mailbox has such deliveries."""
        if subscription not in self._behind:
            return False
        known = self._known.get((subscription, mailbox))
        if known is None:
            row = self._db.execute(_IN_MAILBOX, (subscription, mailbox, self._now)).fetchone()
            known = self._known[subscription, mailbox] = bool(row[0])
        return known


def promote(db: sqlite3.Connection, behind: Collection[int], now: float) -> None:
    """Promote the first due deliveries of each of `behind`, the subscriptions that have any.

    The number is bounded by `PROMOTED_AT_ONCE`.
    """
    limit = max(PROMOTED_AT_ONCE // len(behind), LEAST_PROMOTED)
    for subscription in behind:
        _promote(db, subscription, now, limit)


def cancel(db: sqlite3.Connection, message_id: str, *, now: float) -> bool:
    """Delete a scheduled message that is not due yet, and its accepted id; return False if there is none."""
    events = {event for (event,) in db.execute(_CANCEL, (message_id, now)).fetchall()}
    if not events:
        return False
    db.executemany(_FORGET, [(event, message_id) for event in events])
    db.execute(_FORGET_FORMER, (message_id,))
    return True


def scheduled(db: sqlite3.Connection, message_id: str, *, now: float) -> bool:
    """Return whether `cancel` would succeed."""
    return bool(db.execute(_SCHEDULED, (message_id, now)).fetchone()[0])


def _promote(db: sqlite3.Connection, subscription: int, now: float, limit: int) -> None:
    ready: list[int] = []
    into_mailboxes: list[tuple[int, float, str]] = []
    size = 0
    for number, due_at, mailbox, length in db.execute(_DUE, (subscription, now, limit)).fetchall():
        if mailbox is None:
            ready.append(number)
        else:
            into_mailboxes.append((number, due_at, mailbox))
        size += length
        if size > PROMOTED_BYTES:
            break
    if ready:
        db.execute(_MAKE_READY, (dumps(ready),))
    if into_mailboxes:
        first = reserve(db, len(into_mailboxes))
        db.executemany(_INTO_MAILBOX, [(first + place, row[0]) for place, row in enumerate(into_mailboxes)])
        open_mailboxes(db, [(subscription, row[2], row[1], first + place) for place, row in enumerate(into_mailboxes)])
