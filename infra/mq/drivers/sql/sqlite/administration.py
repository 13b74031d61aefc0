"""What operators do: dead letters, blocked keys, and the end of a subscription."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from infra.mq.drivers.sql.kept import number_of
from infra.mq.drivers.sql.sqlite import inspection, registry
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.publishing import open_mailboxes, promote_all
from infra.mq.drivers.sql.sqlite.settling import bury, close_mailbox, delete, heads
from infra.mq.errors import ListenerInUse, MailboxNotBlocked, SubscriptionNotFound

Backlog = Literal["refuse", "discard", "dead"]

_REVIVE = """
INSERT INTO beneath_delivery
    (id, subscription, state, due_at, mailbox, published_at, message_id, event, ordering_key, body)
SELECT ?, ?, ?, ?, ?, published_at, message_id, event, ordering_key, body FROM beneath_dead_letter WHERE id = ?
"""
_LETTER = "SELECT subscription, coalesce(ordering_key, '') FROM beneath_dead_letter WHERE id = ?"
_DISCARD = "DELETE FROM beneath_dead_letter WHERE id = ?"
_IS_BLOCKED = """
SELECT EXISTS (SELECT 1 FROM beneath_mailbox WHERE subscription = ? AND ordering_key = ? AND state = 3)
"""
_ANEW = "UPDATE beneath_delivery SET failures = 0 WHERE id = ?"
_STATES = range(5)
_BACKLOG = (
    "SELECT id FROM beneath_delivery WHERE state = {} AND subscription = :id AND (:event IS NULL OR event = :event)"
)
_MAILBOXES = """
SELECT m.ordering_key, m.state, (
    SELECT d.id FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
)
FROM beneath_mailbox AS m WHERE m.subscription = ?
"""
_DROP_MAILBOXES = "DELETE FROM beneath_mailbox WHERE subscription = ?"
_DROP_ROUTE = "DELETE FROM beneath_route WHERE subscription = ? AND event = ?"
_DROP_ROUTES = "DELETE FROM beneath_route WHERE subscription = ?"
_DROP_ALIASES = "DELETE FROM beneath_alias WHERE subscription = ?"
_DROP_SUBSCRIPTION = "DELETE FROM beneath_subscription WHERE id = ?"
_CLAIMED = 1

Mailboxes = dict[str, tuple[int, int | None]]
"""State and head of each key's mailbox."""


def retry_dead(db: sqlite3.Connection, dead_ids: Iterable[str], now: float) -> int:
    """Turn dead letters into deliveries again; return how many. Those whose subscription is gone stay."""
    promote_all(db, now)
    return sum(_revive(db, number, now) for number in _numbers(dead_ids))


def discard_dead(db: sqlite3.Connection, dead_ids: Iterable[str]) -> int:
    """Delete dead letters; return how many."""
    return sum(db.execute(_DISCARD, (number,)).rowcount for number in _numbers(dead_ids))


def unblock(db: sqlite3.Connection, name: str, key: str, now: float, *, skip: bool) -> None:
    """Let a blocked mailbox go on.

    Raises:
        SubscriptionNotFound: nothing is kept under that name.
        MailboxNotBlocked: that key is not blocked.
    """
    subscription = registry.get(db, name).id
    if not db.execute(_IS_BLOCKED, (subscription, key)).fetchone()[0]:
        raise MailboxNotBlocked(f"{name}: the key {key!r} is not blocked")
    for head in heads(db, subscription, key):
        if skip:
            bury(db, head, now)
        else:
            db.execute(_ANEW, (head,))
    empty = not heads(db, subscription, key)
    close_mailbox(db, subscription, key, now, reserve(db, 1), empty=empty)


def retire(
    db: sqlite3.Connection,
    name: str,
    event: str | None,
    backlog: Backlog,
    live: Collection[tuple[str, frozenset[str]]],
    now: float,
) -> int:
    """Remove a subscription, or one event of it; `live` has each live worker's id and subscriptions.

    Raises:
        SubscriptionNotFound: nothing is kept under that name, or it has no such event.
        ListenerInUse: a live worker has it, or a backlog exists and is to be refused.
    """
    subscription = registry.get(db, name).id
    if event is None:
        _refuse_if_used(db, name, subscription, live)
    elif event not in registry.events_of(db, subscription):
        raise SubscriptionNotFound(f"{name} has no event {event}")
    promote_all(db, now)
    ids = _backlog_of(db, subscription, event)
    if ids and backlog == "refuse":
        raise ListenerInUse(f"{name} still has {len(ids)} deliveries: discard or bury them, or wait")
    mailboxes = _mailboxes_of(db, subscription)
    _remove(db, ids, now, dead=backlog == "dead")
    if event is None:
        for statement in (_DROP_MAILBOXES, _DROP_ROUTES, _DROP_ALIASES, _DROP_SUBSCRIPTION):
            db.execute(statement, (subscription,))
    else:
        db.execute(_DROP_ROUTE, (subscription, event))
        _reopen(db, subscription, mailboxes, now)
    registry.mark_changed(db, now)
    return len(ids)


def _revive(db: sqlite3.Connection, dead_number: int, now: float) -> bool:
    letter = db.execute(_LETTER, (dead_number,)).fetchone()
    kept = registry.find(db, [letter[0]]).get(letter[0]) if letter else None
    if kept is None:
        return False
    number = reserve(db, 1)
    mailbox = letter[1] if kept.ordered else None
    db.execute(_REVIVE, (number, kept.id, 4 if kept.ordered else 0, now, mailbox, dead_number))
    if mailbox is not None:
        open_mailboxes(db, [(kept.id, mailbox, now, number)])
    db.execute(_DISCARD, (dead_number,))
    return True


def _numbers(dead_ids: Iterable[str]) -> Iterable[int]:
    numbers = (number_of(it) for it in dict.fromkeys(dead_ids))
    return [it for it in numbers if it is not None]


def _refuse_if_used(
    db: sqlite3.Connection, name: str, subscription: int, live: Collection[tuple[str, frozenset[str]]]
) -> None:
    names = inspection.names_of(db, subscription)
    users = [worker for worker, subscriptions in live if not names.isdisjoint(subscriptions)]
    if users:
        raise ListenerInUse(f"{name} is in use by worker {users[0]}: stop it, or remove the listener first")


def _backlog_of(db: sqlite3.Connection, subscription: int, event: str | None) -> list[int]:
    # One query per state: each state has its own index.
    ids = [
        row[0] for state in _STATES for row in db.execute(_BACKLOG.format(state), {"id": subscription, "event": event})
    ]
    return sorted(ids)


def _remove(db: sqlite3.Connection, ids: Sequence[int], now: float, *, dead: bool) -> None:
    if dead:
        for number in ids:
            bury(db, number, now, otherwise="its subscription was retired")
    else:
        delete(db, ids)


def _reopen(db: sqlite3.Connection, subscription: int, before: Mailboxes, now: float) -> None:
    """Let mailboxes go on whose head is gone; those that somebody works on are closed by their owner."""
    for key, (state, head) in _mailboxes_of(db, subscription).items():
        if state != _CLAIMED and head != before[key][1]:
            close_mailbox(db, subscription, key, now, reserve(db, 1), empty=head is None)


def _mailboxes_of(db: sqlite3.Connection, subscription: int) -> Mailboxes:
    return {key: (state, head) for key, state, head in db.execute(_MAILBOXES, (subscription,))}
