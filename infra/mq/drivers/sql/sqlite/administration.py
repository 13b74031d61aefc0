"""What operators do about dead letters and blocked keys."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence

from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.sqlite.mailboxes import close_mailbox, heads, open_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.scheduling import Overdue
from infra.mq.drivers.sql.sqlite.settling import to_dead_letter
from infra.mq.drivers.sql.stored import dead_letter_number
from infra.mq.refusals import not_blocked

DEAD_LETTERS_AT_ONCE = 200
"""How many dead letters a step retries or discards."""

DEAD_LETTERS_BYTES = 4 * 1024 * 1024
"""A step ends once the bodies of its dead letters are larger than this."""

_RETRY_DEAD = """
INSERT INTO beneath_delivery
    (id, subscription, state, due_at, mailbox, published_at, message_id, event, ordering_key, body)
SELECT ?, ?, ?, ?, ?, published_at, message_id, event, ordering_key, body FROM beneath_dead_letter WHERE id = ?
"""
_DEAD_LETTER = """
SELECT subscription, event, coalesce(ordering_key, ''), length(body) FROM beneath_dead_letter WHERE id = ?
"""
_DISCARD = "DELETE FROM beneath_dead_letter WHERE id = ?"
_IS_BLOCKED = """
SELECT EXISTS (SELECT 1 FROM beneath_mailbox WHERE subscription = ? AND ordering_key = ? AND state = 3)
"""
_ANEW = "UPDATE beneath_delivery SET failures = 0 WHERE id = ?"


def numbers_of(dead_ids: Iterable[str]) -> list[int]:
    """Return the numbers behind ids of dead letters, each once; what never was an id is left out."""
    numbers = (dead_letter_number(it) for it in dict.fromkeys(dead_ids))
    return [it for it in numbers if it is not None]


def retry_some(db: sqlite3.Connection, numbers: Sequence[int], *, now: float) -> tuple[int, int]:
    """Turn the first of these dead letters into deliveries again; return how many, and how many were looked at.

    Those whose subscription is gone, or going, stay.
    """
    return _with_some(db, numbers, lambda number, letter: _retry(db, number, letter, now))


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
            to_dead_letter(db, head, now)
        else:
            db.execute(_ANEW, (head,))
    empty = not heads(db, subscription, key)
    close_mailbox(db, subscription, key, now, reserve(db, 1), empty=empty)


DeadLetterRow = tuple[str, str, str, int]
"""Subscription, event, key and size of a dead letter."""


def _with_some(
    db: sqlite3.Connection, numbers: Sequence[int], work: Callable[[int, DeadLetterRow], bool]
) -> tuple[int, int]:
    count = seen = size = 0
    for number in numbers[:DEAD_LETTERS_AT_ONCE]:
        seen += 1
        letter: DeadLetterRow | None = db.execute(_DEAD_LETTER, (number,)).fetchone()
        if letter is None:
            continue
        count += work(number, letter)
        size += letter[3]
        if size > DEAD_LETTERS_BYTES:
            break
    return count, seen


def _retry(db: sqlite3.Connection, dead_number: int, letter: DeadLetterRow, now: float) -> bool:
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
    db.execute(_RETRY_DEAD, (number, kept.id, state, now, mailbox, dead_number))
    if mailbox is not None and state != 3:  # noqa: PLR2004  # as the migration lists them
        open_mailboxes(db, [(kept.id, mailbox, now, number)])
    db.execute(_DISCARD, (dead_number,))
    return True
