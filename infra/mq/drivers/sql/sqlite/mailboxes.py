"""Mailboxes on SQLite: created by their first delivery, claimed by one worker at a time, deleted when empty."""

import sqlite3
from collections.abc import Iterable

_OPEN = """
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn) VALUES (?, ?, 0, ?, ?)
ON CONFLICT DO NOTHING
"""
_RELEASE = """
UPDATE beneath_mailbox SET state = ?, due_at = ?, turn = ?, owner = NULL, last_id = NULL, parked_event = ?
WHERE subscription = ? AND ordering_key = ?
"""
_DROP = "DELETE FROM beneath_mailbox WHERE subscription = ? AND ordering_key = ?"
_HEADS = """
SELECT id FROM beneath_delivery INDEXED BY beneath_delivery_mailbox
WHERE state = 4 AND subscription = ? AND mailbox = ? ORDER BY id LIMIT ?
"""
_STATE = "SELECT state FROM beneath_mailbox WHERE subscription = ? AND ordering_key = ?"

CLAIMED = 1

MailboxRow = tuple[int, str, float, int]
"""Subscription, key, due time and turn."""


def open_mailboxes(db: sqlite3.Connection, mailboxes: Iterable[MailboxRow]) -> None:
    """Create mailboxes that do not exist, as due; existing ones keep their state."""
    db.executemany(_OPEN, mailboxes)


def heads(db: sqlite3.Connection, subscription: int, key: str, limit: int = 1) -> list[int]:
    """Return the first deliveries of a mailbox."""
    return [number for (number,) in db.execute(_HEADS, (subscription, key, limit))]


def state_of(db: sqlite3.Connection, subscription: int, key: str) -> int | None:
    """Return the state of a mailbox; None if there is none."""
    row = db.execute(_STATE, (subscription, key)).fetchone()
    return None if row is None else int(row[0])


def release_mailboxes(
    db: sqlite3.Connection,
    mailboxes: Iterable[tuple[int, str]],
    *,
    state: int = 0,
    due_at: float,
    turn: int,
    parked_for: str | None = None,
) -> None:
    """End the claims of mailboxes (subscription, key), and set their state and due time."""
    rows = [(state, due_at, turn, parked_for, subscription, key) for subscription, key in mailboxes]
    db.executemany(_RELEASE, rows)


def close_mailbox(db: sqlite3.Connection, subscription: int, key: str, now: float, turn: int, *, empty: bool) -> None:
    """Release a mailbox for any worker; delete it if it is empty."""
    if empty:
        drop(db, [(subscription, key)])
    else:
        release_mailboxes(db, [(subscription, key)], due_at=now, turn=turn)


def drop(db: sqlite3.Connection, mailboxes: Iterable[tuple[int, str]]) -> None:
    """Delete empty mailboxes (subscription, key)."""
    db.executemany(_DROP, mailboxes)
