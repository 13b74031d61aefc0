"""Commands of operators on SQLite: retry and discard dead letters, unblock keys."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence

from infra.mq.dead_ids import number_of
from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.sqlite.mailboxes import close_mailbox, heads, open_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.scheduling import Overdue
from infra.mq.drivers.sql.sqlite.settling import to_dead_letter
from infra.mq.refusals import not_blocked

DEAD_LETTERS_AT_ONCE = 200
"""The maximum number of dead letters in a step."""

DEAD_LETTERS_BYTES = 4 * 1024 * 1024
"""The size of bodies, in bytes, after which a step ends."""

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
    """Return the row numbers of dead letter ids, each once; invalid ids are omitted."""
    numbers = (number_of(it) for it in dict.fromkeys(dead_ids))
    return [it for it in numbers if it is not None]


def retry_some(db: sqlite3.Connection, numbers: Sequence[int], *, now: float) -> tuple[int, int]:
    """Turn the first of these dead letters into deliveries; return their number, and the number of ids processed.

    Dead letters of a subscription that was or is being retired stay.
    """
    return _with_some(db, numbers, lambda number, letter: _retry(db, number, letter, now))


def discard_some(db: sqlite3.Connection, numbers: Sequence[int]) -> tuple[int, int]:
    """Delete the first of these dead letters; return their number, and the number of ids processed."""
    return _with_some(db, numbers, lambda number, _: db.execute(_DISCARD, (number,)).rowcount > 0)


def unblock(db: sqlite3.Connection, name: str, key: str, *, skip: bool, now: float) -> None:
    """Unblock a mailbox; with `skip` its head becomes a dead letter.

    Raises:
        SubscriptionNotFound: no subscription has that name.
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
        # It joins the end of its mailbox, behind scheduled messages that are due but not promoted yet.
        state = 3 if Overdue(db, {kept.id}, now).in_mailbox(kept.id, mailbox) else 4
    db.execute(_RETRY_DEAD, (number, kept.id, state, now, mailbox, dead_number))
    if mailbox is not None and state != 3:  # noqa: PLR2004  # `tables.sql` lists the states
        open_mailboxes(db, [(kept.id, mailbox, now, number)])
    db.execute(_DISCARD, (dead_number,))
    return True
