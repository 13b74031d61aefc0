"""Statistics and dead letters on SQLite; all functions only read, and count in indexes only."""

import json
import sqlite3
from collections.abc import Collection

from infra.mq.dead_ids import number_of
from infra.mq.drivers.sql.retirement import interrupted
from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.statistics import BacklogCounts, ordered_backlog, statistics_of, unordered_backlog
from infra.mq.drivers.sql.stored import DEAD_LETTERS, dead_letter_of
from infra.mq.refusals import no_dead_letter
from infra.mq.types import DeadLetter, SubscriptionStats

_SUBSCRIPTIONS = "SELECT id, name, ordered, paused FROM beneath_subscription ORDER BY name"
_READY = """
SELECT count(*) FILTER (WHERE due_at <= :now), count(*) FILTER (WHERE due_at > :now), min(published_at)
FROM beneath_delivery WHERE state = 0 AND subscription = :id
"""
_CLAIMED = "SELECT count(*), min(published_at) FROM beneath_delivery WHERE state = 1 AND subscription = ?"
_PARKED = "SELECT count(*), min(published_at) FROM beneath_delivery WHERE state = 2 AND subscription = ?"
_SCHEDULED = """
SELECT count(*) FILTER (WHERE due_at > :now), count(*) FILTER (WHERE due_at <= :now),
    min(published_at) FILTER (WHERE due_at <= :now)
FROM beneath_delivery INDEXED BY beneath_delivery_scheduled WHERE state = 3 AND subscription = :id
"""
_IN_MAILBOXES = "SELECT count(*), min(published_at) FROM beneath_delivery WHERE state = 4 AND subscription = ?"
_RETRYING_MAILBOXES = """
SELECT count(*) FROM beneath_mailbox INDEXED BY beneath_mailbox_ready
WHERE state = 0 AND subscription = ? AND due_at > ?
"""
_OPEN_MAILBOXES = """
SELECT count(*) FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_claimed CROSS JOIN beneath_delivery AS d
    ON d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key AND d.id <= m.last_id
WHERE m.state = 1 AND m.subscription = ?
"""
_PARKED_MAILBOXES = """
SELECT count(*) FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_parked CROSS JOIN beneath_delivery AS d
    ON d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
WHERE m.state = 2 AND m.subscription = ?
"""
_BLOCKED_MAILBOXES = """
SELECT count(*) FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_blocked CROSS JOIN beneath_delivery AS d
    ON d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
WHERE m.state = 3 AND m.subscription = ?
"""
_BLOCKED_KEYS = """
SELECT m.ordering_key, coalesce((
    SELECT d.last_error FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
), '')
FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_blocked
WHERE m.state = 3 AND m.subscription = ? ORDER BY m.ordering_key
"""
_RETIRING = """
SELECT s.name, event, backlog
FROM beneath_retirement CROSS JOIN beneath_subscription AS s ON s.id = subscription
"""
_DEAD = "SELECT count(*) FROM beneath_dead_letter WHERE subscription = ?"


def stats(db: sqlite3.Connection, live: Collection[frozenset[str]], *, now: float) -> list[SubscriptionStats]:
    """Return the counts of every subscription; `live` holds the subscriptions of each live worker."""
    # In one snapshot, so that no delivery is counted twice while it changes its state.
    db.execute("BEGIN")
    try:
        return [_stats_of(db, row, live, now) for row in _subscriptions(db)]
    finally:
        db.execute("ROLLBACK")


def dead_letters(
    db: sqlite3.Connection, subscription: str | None, event: str | None, limit: int, after: str | None
) -> list[DeadLetter]:
    """Return dead letters, oldest first."""
    start = 0 if after is None else number_of(after)
    if start is None:
        return []
    conditions = ["id > ?"]
    values: list[int | str] = [start]
    if subscription is not None:
        kept = registry.find(db, [subscription]).get(subscription)
        conditions.append("subscription = ?")
        values.append(subscription if kept is None else registry.present_name(db, kept.id))
    if event is not None:
        conditions.append("event = ?")
        values.append(event)
    query = f"{DEAD_LETTERS} WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"
    return [dead_letter_of(row) for row in db.execute(query, (*values, limit))]


def dead_letter(db: sqlite3.Connection, dead_id: str) -> DeadLetter:
    """Return one dead letter.

    Raises:
        DeadLetterNotFound: no dead letter has that id.
    """
    row = db.execute(f"{DEAD_LETTERS} WHERE id = ?", (number_of(dead_id),)).fetchone()
    if row is None:
        raise no_dead_letter(dead_id)
    return dead_letter_of(row)


def interrupted_retirements(db: sqlite3.Connection) -> list[str]:
    """Return a line for each incomplete retirement."""
    return [interrupted(name, event, backlog) for name, event, backlog in db.execute(_RETIRING)]


def names_in(subscriptions: str) -> frozenset[str]:
    """Return the names that a worker's row lists."""
    return frozenset(json.loads(subscriptions))


def _subscriptions(db: sqlite3.Connection) -> list[tuple[int, str, int, int]]:
    return db.execute(_SUBSCRIPTIONS).fetchall()


def _stats_of(
    db: sqlite3.Connection,
    subscription: tuple[int, str, int, int],
    live: Collection[frozenset[str]],
    now: float,
) -> SubscriptionStats:
    number, name, ordered, paused = subscription
    return statistics_of(
        name,
        ordered=bool(ordered),
        paused=bool(paused),
        events=registry.events_of(db, number),
        names=registry.names_of(db, number),
        live=live,
        backlog=(_ordered if ordered else _unordered)(db, number, now),
        scheduled=db.execute(_SCHEDULED, {"id": number, "now": now}).fetchone(),
        dead=db.execute(_DEAD, (name,)).fetchone()[0],
        blocked_keys=dict(db.execute(_BLOCKED_KEYS, (number,)).fetchall()),
    )


def _unordered(db: sqlite3.Connection, number: int, now: float) -> BacklogCounts:
    return unordered_backlog(
        db.execute(_READY, {"id": number, "now": now}).fetchone(),
        claimed=db.execute(_CLAIMED, (number,)).fetchone(),
        parked=db.execute(_PARKED, (number,)).fetchone(),
    )


def _ordered(db: sqlite3.Connection, number: int, now: float) -> BacklogCounts:
    return ordered_backlog(
        db.execute(_IN_MAILBOXES, (number,)).fetchone(),
        retrying=_count(db, _RETRYING_MAILBOXES, number, now),
        in_flight=_count(db, _OPEN_MAILBOXES, number),
        parked=_count(db, _PARKED_MAILBOXES, number),
        blocked=_count(db, _BLOCKED_MAILBOXES, number),
    )


def _count(db: sqlite3.Connection, query: str, *values: float) -> int:
    return int(db.execute(query, values).fetchone()[0])
