"""Workers: joining, leaving, and what becomes of the claims of dead ones."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from json import dumps
from typing import Any

from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.settling import give_back
from infra.mq.types import Claim, WorkerInfo

_JOIN = """
INSERT INTO beneath_worker (id, name, host, pid, subscriptions, joined_at) VALUES (?, ?, ?, ?, ?, ?)
"""
_ALL = "SELECT id, name, subscriptions FROM beneath_worker"
_LEAVE = "DELETE FROM beneath_worker WHERE id = ?"
_LINGER = "UPDATE beneath_worker SET subscriptions = '[]' WHERE id = ?"
_CHARGE = """
UPDATE beneath_delivery
SET takeovers = takeovers + (isolated = 0), crashes = crashes + (isolated = 1), isolated = 0
"""
_TAKE_OVER = f"""
{_CHARGE.rstrip()}, state = 0, owner = NULL WHERE state = 1 AND owner = ?
"""
_CHARGE_HANDED_OUT = f"{_CHARGE} WHERE state = 4 AND subscription = ? AND mailbox = ? AND id <= ?"
_RELEASE = """
UPDATE beneath_delivery SET state = 0, owner = NULL, isolated = 0
WHERE state = 1 AND owner = ? AND id NOT IN (SELECT value FROM json_each(?))
"""
_UNMARK = """
UPDATE beneath_delivery SET isolated = 0 WHERE state = 4 AND subscription = ? AND mailbox = ? AND id <= ?
"""
_MAILBOXES = """
SELECT subscription, ordering_key, last_id, fence FROM beneath_mailbox INDEXED BY beneath_mailbox_claimed
WHERE state = 1 AND owner = ?
"""
_UNPARK = """
UPDATE beneath_delivery SET state = 0
WHERE state = 2 AND subscription = ? AND event IN (SELECT value FROM json_each(?))
"""
_HAS_PARKED = """
SELECT 1 FROM beneath_delivery
WHERE state = 2 AND subscription = ? AND event IN (SELECT value FROM json_each(?)) LIMIT 1
"""
_PARKED_MAILBOXES = """
SELECT subscription, ordering_key FROM beneath_mailbox INDEXED BY beneath_mailbox_parked
WHERE state = 2 AND subscription = ? AND parked_event IN (SELECT value FROM json_each(?))
"""
_HAS_PARKED_MAILBOX = f"{_PARKED_MAILBOXES} LIMIT 1"
_SUBSCRIPTION_OF = """
SELECT id, ordered FROM beneath_subscription WHERE name = :name
UNION ALL
SELECT s.id, s.ordered FROM beneath_alias AS a CROSS JOIN beneath_subscription AS s ON s.id = a.subscription
WHERE a.name = :name
"""

Member = tuple[int, str, str]
"""A registered worker: its number, its id, and its subscriptions as JSON."""


def join(db: sqlite3.Connection, info: WorkerInfo, now: float) -> int:
    """Register a worker; return the number under which it owns things."""
    number = reserve(db, 1)
    names = dumps(sorted(info.subscriptions))
    db.execute(_JOIN, (number, info.id, info.host, info.pid, names, now))
    return number


def members(db: sqlite3.Connection) -> list[Member]:
    """Return the registered workers, dead ones among them."""
    return db.execute(_ALL).fetchall()


def take_over(db: sqlite3.Connection, worker: int, now: float) -> int:
    """Take everything from a dead worker and charge the deliveries; return how many, 0 for all but the first call."""
    if not db.execute(_LEAVE, (worker,)).rowcount:
        return 0
    charged = db.execute(_TAKE_OVER, (worker,)).rowcount
    mailboxes = db.execute(_MAILBOXES, (worker,)).fetchall()
    for mailbox in mailboxes:
        charged += db.execute(_CHARGE_HANDED_OUT, mailbox[:3]).rowcount
    _return_mailboxes(db, mailboxes, now)
    return charged


def leave(db: sqlite3.Connection, worker: int, keep: Collection[Claim], now: float) -> None:
    """Give back what a worker owns but for the claims it keeps; unregister it if it keeps none."""
    kept = [it.deliveries[0].id for it in keep if not it.ordered]
    fences = {it.fence for it in keep if it.ordered}
    db.execute(_RELEASE, (worker, dumps(kept)))
    held = db.execute(_MAILBOXES, (worker,)).fetchall()
    mailboxes = [row[:3] for row in held if row[3] not in fences]
    db.executemany(_UNMARK, mailboxes)
    _return_mailboxes(db, mailboxes, now)
    # Its row must outlive it as long as it owns something: it is by the row that others find what to take over.
    db.execute(_LINGER if keep else _LEAVE, (worker,))


def has_parked(db: sqlite3.Connection, known: Mapping[str, Collection[str]]) -> bool:
    """Return whether `unpark` would find anything; writes nothing."""
    return any(
        db.execute(_HAS_PARKED_MAILBOX if ordered else _HAS_PARKED, (subscription, dumps(sorted(events)))).fetchone()
        for name, events in known.items()
        for subscription, ordered in db.execute(_SUBSCRIPTION_OF, {"name": name}).fetchall()
    )


def unpark(db: sqlite3.Connection, known: Mapping[str, Collection[str]], now: float) -> int:
    """Make parked deliveries due whose event is known; return how many."""
    count = 0
    for name, events in known.items():
        for subscription, ordered in db.execute(_SUBSCRIPTION_OF, {"name": name}).fetchall():
            parked = (subscription, dumps(sorted(events)))
            if ordered:
                mailboxes = db.execute(_PARKED_MAILBOXES, parked).fetchall()
                _return_mailboxes(db, mailboxes, now)
                count += len(mailboxes)
            else:
                count += db.execute(_UNPARK, parked).rowcount
    return count


def _return_mailboxes(db: sqlite3.Connection, mailboxes: Sequence[tuple[Any, ...]], now: float) -> None:
    if mailboxes:
        give_back(db, [(row[0], row[1]) for row in mailboxes], due_at=now, turn=reserve(db, 1))
