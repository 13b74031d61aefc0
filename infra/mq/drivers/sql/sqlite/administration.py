"""What operators do about dead letters and blocked keys."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence

from infra.mq.drivers.sql.kept import number_of
from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.sqlite.mailboxes import close_mailbox, heads, open_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.scheduling import Overdue
from infra.mq.drivers.sql.sqlite.settling import bury
from infra.mq.refusals import not_blocked

LETTERS_AT_ONCE = 200
"""How many dead letters a step retries or discards."""

LETTERS_BYTES = 4 * 1024 * 1024
"""A step ends once the bodies of its dead letters are larger than this."""

_REVIVE = """
INSERT INTO beneath_delivery
    (id, subscription, state, due_at, mailbox, published_at, message_id, event, ordering_key, body)
SELECT ?, ?, ?, ?, ?, published_at, message_id, event, ordering_key, body FROM beneath_dead_letter WHERE id = ?
"""
_LETTER = """
SELECT subscription, event, coalesce(ordering_key, ''), length(body) FROM beneath_dead_letter WHERE id = ?
"""
_DISCARD = "DELETE FROM beneath_dead_letter WHERE id = ?"
_IS_BLOCKED = """
SELECT EXISTS (SELECT 1 FROM beneath_mailbox WHERE subscription = ? AND ordering_key = ? AND state = 3)
"""
_ANEW = "UPDATE beneath_delivery SET failures = 0 WHERE id = ?"


def numbers_of(dead_ids: Iterable[str]) -> list[int]:
    """Return the numbers behind ids of dead letters, each once; what never was an id is left out."""
    numbers = (number_of(it) for it in dict.fromkeys(dead_ids))
    return [it for it in numbers if it is not None]


def retry_some(db: sqlite3.Connection, numbers: Sequence[int], *, now: float) -> tuple[int, int]:
    """Turn the first of these dead letters into deliveries again; return how many, and how many were looked at.

    Those whose subscription is gone, or going, stay.
    """
    return _with_some(db, numbers, lambda number, letter: _revive(db, number, letter, now))


def discard_some(db: sqlite3.Connection, numbers: Sequence[int]) -> tuple[int, int]:
    """Delete the first of these dead letters; return how many, and how many were looked at."""
    return _with_some(db, numbers, lambda number, _: db.execute(_DISCARD, (number,)).rowcount > 0)


def unblock(db: sqlite3.Connection, name: str, key: str, *, skip: bool, now: float) -> None:
    """Let a blocked mailbox go on.

    Raises:
        SubscriptionNotFound: nothing is kept under that name.
        MailboxNotBlocked: that key is not blocked.
    """
    subscription = registry.get(db, name).id
    if not db.execute(_IS_BLOCKED, (subscription, key)).fetchone()[0]:
        raise not_blocked(name, key)
    for head in heads(db, subscription, key):
        if skip:
            bury(db, head, now)
        else:
            db.execute(_ANEW, (head,))
    empty = not heads(db, subscription, key)
    close_mailbox(db, subscription, key, now, reserve(db, 1), empty=empty)


Letter = tuple[str, str, str, int]
"""Subscription, event, key and size of a dead letter."""


def _with_some(db: sqlite3.Connection, numbers: Sequence[int], work: Callable[[int, Letter], bool]) -> tuple[int, int]:
    count = seen = size = 0
    for number in numbers[:LETTERS_AT_ONCE]:
        seen += 1
        letter: Letter | None = db.execute(_LETTER, (number,)).fetchone()
        if letter is None:
            continue
        count += work(number, letter)
        size += letter[3]
        if size > LETTERS_BYTES:
            break
    return count, seen


def _revive(db: sqlite3.Connection, dead_number: int, letter: Letter, now: float) -> bool:
    name, event, key, _ = letter
    kept = registry.find(db, [name]).get(name)
    if kept is None or not registry.retiring_events(db, kept.id).isdisjoint({"", event}):
        return False
    number = reserve(db, 1)
    mailbox = key if kept.ordered else None
    state = 0
    if mailbox is not None:
        # It joins the end of its mailbox, behind what became due before but has not taken its place yet.
        state = 3 if Overdue(db, {kept.id}, now).in_mailbox(kept.id, mailbox) else 4
    db.execute(_REVIVE, (number, kept.id, state, now, mailbox, dead_number))
    if mailbox is not None and state != 3:  # noqa: PLR2004  # as the migration lists them
        open_mailboxes(db, [(kept.id, mailbox, now, number)])
    db.execute(_DISCARD, (dead_number,))
    return True
