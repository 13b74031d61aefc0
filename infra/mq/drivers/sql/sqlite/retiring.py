"""Retiring a subscription, or one of its events, in steps.

The first step stores the retirement: from then on no message is routed to it, and no claim returns its deliveries. The
next steps remove pending deliveries, each a bounded number in its own transaction; the last step removes the stored
retirement. Repeating the call completes an interrupted one.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.mq.drivers.sql.retirement import COUNTED, refuse_if_used
from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.sqlite.mailboxes import CLAIMED, close_mailbox, drop, heads, state_of
from infra.mq.drivers.sql.sqlite.numbers import last_number, reserve
from infra.mq.drivers.sql.sqlite.settling import delete, to_dead_letter
from infra.mq.refusals import RETIRED, has_backlog, no_event
from infra.mq.types import BacklogPolicy

Live = Collection[tuple[str, frozenset[str]]]
"""The id and the subscriptions of each live worker."""

REMOVED_AT_ONCE = 500
"""The number of deliveries that a step reads."""

REMOVED_BYTES = 4 * 1024 * 1024
"""The size of removed bodies, in bytes, after which a step ends."""

_COLUMNS = "id, subscription, event, mailbox, length(body)"
_CLAIMED = f"""
SELECT {_COLUMNS}, owner, subscription, published_at, state, id
FROM beneath_delivery INDEXED BY beneath_delivery_claimed
WHERE state = 1 AND (owner, subscription, published_at, state, id) > (?, ?, ?, ?, ?)
ORDER BY owner, subscription, published_at, state, id LIMIT {REMOVED_AT_ONCE}
"""  # noqa: S608  # constants only
_PARKED = f"""
SELECT {_COLUMNS}, coalesce(needs, event), id FROM beneath_delivery INDEXED BY beneath_delivery_parked
WHERE state = 2 AND subscription = ? AND (coalesce(needs, event), id) > (?, ?)
ORDER BY coalesce(needs, event), id LIMIT {REMOVED_AT_ONCE}
"""  # noqa: S608  # constants only
_SCHEDULED = f"""
SELECT {_COLUMNS}, due_at, id FROM beneath_delivery INDEXED BY beneath_delivery_scheduled
WHERE state = 3 AND subscription = ? AND (due_at, id) > (?, ?) ORDER BY due_at, id LIMIT {REMOVED_AT_ONCE}
"""  # noqa: S608  # constants only
_READY = f"""
SELECT {_COLUMNS}, due_at, id FROM beneath_delivery INDEXED BY beneath_delivery_ready
WHERE state = 0 AND subscription = ? AND (due_at, id) > (?, ?) ORDER BY due_at, id LIMIT {REMOVED_AT_ONCE}
"""  # noqa: S608  # constants only
_IN_MAILBOXES = f"""
SELECT {_COLUMNS}, mailbox, id FROM beneath_delivery INDEXED BY beneath_delivery_mailbox
WHERE state = 4 AND subscription = ? AND (mailbox, id) > (?, ?) ORDER BY mailbox, id LIMIT {REMOVED_AT_ONCE}
"""  # noqa: S608  # constants only
_LEAST = -1e308
# In the order of state changes: a delivery that leaves a state during its walk is found in a later state.
_WALKS: Sequence[tuple[str, bool, tuple[Any, ...]]] = (
    (_CLAIMED, False, (0, 0, _LEAST, 0, 0)),
    (_PARKED, True, ("", 0)),
    (_SCHEDULED, True, (_LEAST, 0)),
    (_READY, True, (_LEAST, 0)),
    (_IN_MAILBOXES, True, ("", 0)),
)
_ARRIVED = """
SELECT EXISTS (
    SELECT 1 FROM beneath_delivery WHERE id > :since AND subscription = :id AND (:event IS NULL OR event = :event)
)
"""
_NOTE = """
INSERT INTO beneath_retirement (subscription, event, backlog) VALUES (?, ?, ?)
ON CONFLICT (subscription, event) DO UPDATE SET backlog = excluded.backlog
"""
_NOTES = "SELECT subscription, event, backlog FROM beneath_retirement"
_FORGET = "DELETE FROM beneath_retirement WHERE subscription = ? AND event = ?"
_FORGET_ALL = "DELETE FROM beneath_retirement WHERE subscription = ?"
_STOP = "UPDATE beneath_subscription SET paused = 1 WHERE id = ?"
_DROP_ROUTE = "DELETE FROM beneath_route WHERE subscription = ? AND event = ?"
_DROP_ROUTES = "DELETE FROM beneath_route WHERE subscription = ?"
_DROP_ALIASES = "DELETE FROM beneath_alias WHERE subscription = ?"
_DROP_SUBSCRIPTION = "DELETE FROM beneath_subscription WHERE id = ?"
_MAILBOXES = "SELECT ordering_key FROM beneath_mailbox WHERE subscription = ? LIMIT ?"


@dataclass(frozen=True, slots=True)
class Walk:
    """The position of the removal of a backlog."""

    subscription: int
    event: str | None
    dead: bool
    state: int = 0
    cursor: tuple[Any, ...] | None = None


def waiting(db: sqlite3.Connection, name: str, event: str | None) -> tuple[int, int]:
    """Count pending deliveries up to `COUNTED`; also return the last delivery number. Only reads, and may take long.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    db.execute("BEGIN")
    try:
        since = last_number(db, "beneath_number")
        walk: Walk | None = Walk(registry.get(db, name).id, event, dead=False)
        count = 0
        while walk is not None and walk.state < len(_WALKS) and count < COUNTED:
            found, walk = _next_page(db, walk)
            count += len(found)
        return min(count, COUNTED), since
    finally:
        db.execute("ROLLBACK")


def begin(
    db: sqlite3.Connection,
    name: str,
    event: str | None,
    backlog: BacklogPolicy,
    live: Live,
    found: tuple[int, int] | None,
) -> Walk:
    """Store the retirement of a subscription or of one event; with `found`, the result of `waiting`, refuse a backlog.

    Raises:
        SubscriptionNotFound: no subscription has that name, or it does not have that event.
        ListenerInUse: a live worker has the listener, or a backlog exists and `found` is given.
    """
    subscription = registry.get(db, name).id
    noted = registry.retiring_events(db, subscription)
    if event is None:
        refuse_if_used(name, registry.names_of(db, subscription), live)
    elif event not in registry.events_of(db, subscription) and event not in noted:
        raise no_event(name, event)
    if found is not None:
        _refuse_backlog(db, name, subscription, event, found)
    db.execute(_NOTE, (subscription, event or "", "discard" if backlog == "refuse" else backlog))
    if event is None:
        db.execute(_STOP, (subscription,))
        db.execute(_DROP_ROUTES, (subscription,))
    else:
        db.execute(_DROP_ROUTE, (subscription, event))
    return Walk(subscription, event, dead=backlog == "dead")


def remove_some(db: sqlite3.Connection, place: Walk, *, clock: Callable[[], float]) -> tuple[int, Walk | None]:
    """Remove a step's worth of deliveries; return their number, and where to continue: None at the end."""
    walk = place
    if walk.state < len(_WALKS):
        found, following = _next_page(db, walk)
        _remove(db, walk, found, clock())
        return len(found), following
    if walk.event is not None:
        return 0, None
    keys = [key for (key,) in db.execute(_MAILBOXES, (walk.subscription, REMOVED_AT_ONCE))]
    drop(db, [(walk.subscription, key) for key in keys])
    return 0, walk if keys else None


def finish(db: sqlite3.Connection, walk: Walk, *, now: float) -> None:
    """Remove the subscription or event, once no deliveries are left."""
    if walk.event is None:
        for statement in (_DROP_ROUTES, _DROP_ALIASES, _DROP_SUBSCRIPTION, _FORGET_ALL):
            db.execute(statement, (walk.subscription,))
    else:
        db.execute(_FORGET, (walk.subscription, walk.event))
    registry.mark_changed(db, now)


class Retiring:
    """The events that are being retired: a claim removes their deliveries instead of returning them."""

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self._db = db
        self._now = now
        self._notes: Mapping[tuple[int, str], str] = {
            (subscription, event): backlog for subscription, event, backlog in db.execute(_NOTES)
        }

    def without(self, subscription: int, rows: list[Any]) -> list[Any]:
        """Return the claimable ones of `rows`, whose first columns are id, message id and event; remove the others."""
        if not self._notes:
            return rows
        left = []
        for row in rows:
            backlog = self._notes.get((subscription, row[2]))
            if backlog is None:
                left.append(row)
            elif backlog == "dead":
                to_dead_letter(self._db, row[0], self._now, otherwise=RETIRED)
            else:
                delete(self._db, [row[0]])
        return left


def _refuse_backlog(
    db: sqlite3.Connection, name: str, subscription: int, event: str | None, found: tuple[int, int]
) -> None:
    count, since = found
    values = {"since": since, "id": subscription, "event": event}
    if not count and db.execute(_ARRIVED, values).fetchone()[0]:
        count = 1
    if count:
        raise has_backlog(name, count, at_least=count >= COUNTED)


def _next_page(db: sqlite3.Connection, walk: Walk) -> tuple[list[tuple[int, str | None]], Walk]:
    """Return the next deliveries (number, mailbox) of a backlog, and where to continue."""
    statement, by_subscription, least = _WALKS[walk.state]
    values = (*((walk.subscription,) if by_subscription else ()), *(walk.cursor or least))
    rows = db.execute(statement, values).fetchall()
    found: list[tuple[int, str | None]] = []
    size = 0
    for number, subscription, event, mailbox, length, *cursor in rows:
        if subscription == walk.subscription and walk.event in {None, event}:
            found.append((number, mailbox))
            size += length
            if size > REMOVED_BYTES:
                return found, replace(walk, cursor=tuple(cursor))
    if len(rows) < REMOVED_AT_ONCE:
        return found, replace(walk, state=walk.state + 1, cursor=None)
    return found, replace(walk, cursor=tuple(rows[-1][5:]))


def _remove(db: sqlite3.Connection, walk: Walk, found: Sequence[tuple[int, str | None]], now: float) -> None:
    numbers = [number for number, _ in found]
    keys = dict.fromkeys(key for _, key in found if key is not None) if walk.event is not None else {}
    orphaned = _headed_by(db, walk.subscription, keys, set(numbers))
    if walk.dead:
        for number in numbers:
            to_dead_letter(db, number, now, otherwise=RETIRED)
    else:
        delete(db, numbers)
    for key in orphaned:
        empty = not heads(db, walk.subscription, key)
        close_mailbox(db, walk.subscription, key, now, reserve(db, 1), empty=empty)


def _headed_by(db: sqlite3.Connection, subscription: int, keys: Iterable[str], numbers: set[int]) -> list[str]:
    """Return the mailboxes to release because `numbers` hold their heads; claimed ones are closed by their owner."""
    return [
        key
        for key in keys
        if state_of(db, subscription, key) not in {None, CLAIMED}
        and not numbers.isdisjoint(heads(db, subscription, key))
    ]
