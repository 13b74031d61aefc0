"""Parked deliveries on SQLite, which wait for a worker that knows their event or version."""

import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from json import dumps

from infra.mq.drivers.sql.sqlite.membership import requeue_mailboxes

UNPARKED_AT_ONCE = 500
"""The maximum number of deliveries or mailboxes that a step makes due."""

_PARKED = """
SELECT id FROM beneath_delivery INDEXED BY beneath_delivery_parked
WHERE state = 2 AND subscription = ? AND coalesce(needs, event) = ? AND id > ? ORDER BY id LIMIT ?
"""
_UNPARK = "UPDATE beneath_delivery SET state = 0, needs = NULL WHERE id IN (SELECT value FROM json_each(?))"
_PARKED_MAILBOXES = """
SELECT subscription, ordering_key FROM beneath_mailbox INDEXED BY beneath_mailbox_parked
WHERE state = 2 AND subscription = ? AND parked_event = ? AND ordering_key >= ? ORDER BY ordering_key LIMIT ?
"""
_NEEDED = """
SELECT value FROM json_each(?) WHERE EXISTS (
    SELECT 1 FROM beneath_delivery INDEXED BY beneath_delivery_parked
    WHERE state = 2 AND subscription = ? AND coalesce(needs, event) = value
)
"""
_NEEDED_BY_MAILBOXES = """
SELECT value FROM json_each(?) WHERE EXISTS (
    SELECT 1 FROM beneath_mailbox INDEXED BY beneath_mailbox_parked
    WHERE state = 2 AND subscription = ? AND parked_event = value
)
"""
_SUBSCRIPTION_OF = """
SELECT id, ordered FROM beneath_subscription WHERE name = :name
UNION ALL
SELECT s.id, s.ordered FROM beneath_alias AS a CROSS JOIN beneath_subscription AS s ON s.id = a.subscription
WHERE a.name = :name
"""


@dataclass(frozen=True, slots=True)
class Needed:
    """An event or version that parked deliveries of a subscription need and a worker knows."""

    subscription: int
    ordered: bool
    name: str


def needed(db: sqlite3.Connection, known: Mapping[str, Collection[str]]) -> list[Needed]:
    """Return the entries of `known` that a parked delivery needs; writes nothing."""
    return [
        Needed(subscription, bool(ordered), name)
        for subscribed, names in known.items()
        for subscription, ordered in db.execute(_SUBSCRIPTION_OF, {"name": subscribed}).fetchall()
        for (name,) in db.execute(
            _NEEDED_BY_MAILBOXES if ordered else _NEEDED, (dumps(sorted(names)), subscription)
        ).fetchall()
    ]


def unpark_some(
    db: sqlite3.Connection, place: int | str | None, *, it: Needed, clock: Callable[[], float]
) -> tuple[int, int | str | None]:
    """Make some parked deliveries or mailboxes due that need `it`; return their number, and the next place.

    The steps pass over them once: deliveries that an older worker parks again meanwhile stay parked.
    """
    if it.ordered:
        values = (it.subscription, it.name, place or "", UNPARKED_AT_ONCE)
        mailboxes = db.execute(_PARKED_MAILBOXES, values).fetchall()
        requeue_mailboxes(db, mailboxes, clock())
        # The next step begins right behind the last key: no key contains NUL, and a key may be empty.
        return len(mailboxes), f"{mailboxes[-1][1]}\0" if len(mailboxes) == UNPARKED_AT_ONCE else None
    values = (it.subscription, it.name, place or 0, UNPARKED_AT_ONCE)
    numbers = [number for (number,) in db.execute(_PARKED, values)]
    if numbers:
        db.execute(_UNPARK, (dumps(numbers),))
    return len(numbers), numbers[-1] if len(numbers) == UNPARKED_AT_ONCE else None
