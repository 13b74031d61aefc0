"""Workers on SQLite: joining, leaving, and taking over the claims of dead ones."""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from json import dumps
from typing import Any

from infra.mq.drivers.sql.sqlite import registry
from infra.mq.drivers.sql.sqlite.mailboxes import release_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.types import Claim, WorkerInfo

RELEASED_AT_ONCE = 500
"""The maximum number of deliveries that a step takes from a worker."""

MAILBOXES_AT_ONCE = 50
"""The maximum number of mailboxes that a step takes from a worker."""

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
{_CHARGE.rstrip()}, state = 0, owner = NULL WHERE id IN (SELECT value FROM json_each(?))
"""  # noqa: S608  # constants only
_CHARGE_HANDED_OUT = f"{_CHARGE} WHERE state = 4 AND subscription = ? AND mailbox = ? AND id <= ?"
_RELEASE = """
UPDATE beneath_delivery SET state = 0, owner = NULL, isolated = 0 WHERE id IN (SELECT value FROM json_each(?))
"""
_UNMARK = """
UPDATE beneath_delivery SET isolated = 0 WHERE state = 4 AND subscription = ? AND mailbox = ? AND id <= ?
"""
_DELIVERIES = """
SELECT id FROM beneath_delivery INDEXED BY beneath_delivery_claimed
WHERE state = 1 AND owner = ? AND id NOT IN (SELECT value FROM json_each(?)) LIMIT ?
"""
_MAILBOXES = """
SELECT subscription, ordering_key, last_id FROM beneath_mailbox INDEXED BY beneath_mailbox_claimed
WHERE state = 1 AND owner = ? AND (subscription, ordering_key) NOT IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
) LIMIT ?
"""
_OWNERS = """
WITH RECURSIVE owner (id) AS (
    SELECT min(owner) FROM {table} INDEXED BY {table}_claimed WHERE state = 1
    UNION ALL
    SELECT (
        SELECT min(t.owner) FROM {table} AS t INDEXED BY {table}_claimed WHERE t.state = 1 AND t.owner > owner.id
    ) FROM owner WHERE owner.id IS NOT NULL
)
SELECT id FROM owner WHERE id IS NOT NULL AND id NOT IN (SELECT id FROM beneath_worker)
"""
_UNKNOWN_OWNERS = (_OWNERS.format(table="beneath_delivery"), _OWNERS.format(table="beneath_mailbox"))

MemberRow = tuple[int, str, str]
"""A registered worker: its number, its id, and its subscriptions as JSON."""


def join(db: sqlite3.Connection, info: WorkerInfo, *, now: float) -> int:
    """Register a worker; return the number that marks its claims as owner."""
    number = reserve(db, 1)
    names = dumps(sorted(info.subscriptions))
    db.execute(_JOIN, (number, info.id, info.host, info.pid, names, now))
    return number


def members(db: sqlite3.Connection) -> list[MemberRow]:
    """Return the registered workers, including dead ones."""
    return db.execute(_ALL).fetchall()


def unknown_owners(db: sqlite3.Connection) -> set[int]:
    """Return the owners of claims that are not registered; only a damaged file has such claims."""
    return {number for statement in _UNKNOWN_OWNERS for (number,) in db.execute(statement)}


def take_over_some(
    db: sqlite3.Connection, place: object, *, worker: int, clock: Callable[[], float]
) -> tuple[int, bool]:
    """Take over a step's worth of a dead worker's deliveries; return their number, and whether to continue.

    Each delivery counts a takeover or a crash. The last step unregisters the worker, so that other processes continue
    an interrupted takeover.
    """
    numbers, mailboxes, more = _owned(db, worker)
    charged = db.execute(_TAKE_OVER, (dumps(numbers),)).rowcount
    for mailbox in mailboxes:
        charged += db.execute(_CHARGE_HANDED_OUT, mailbox).rowcount
    requeue_mailboxes(db, mailboxes, clock())
    if not more:
        db.execute(_LEAVE, (worker,))
    return charged, more


def leave_some(
    db: sqlite3.Connection, place: object, *, worker: int, keep: Collection[Claim], clock: Callable[[], float]
) -> tuple[int, bool]:
    """Release a step's worth of a worker's claims but `keep`; return their number, and whether to continue.

    The last step unregisters the worker if it keeps none.
    """
    numbers, mailboxes, more = _owned(db, worker, keep)
    db.execute(_RELEASE, (dumps(numbers),))
    db.executemany(_UNMARK, mailboxes)
    requeue_mailboxes(db, mailboxes, clock())
    if not more:
        # As long as the worker owns claims, its row stays: other processes need it to take the claims over.
        db.execute(_LINGER if keep else _LEAVE, (worker,))
    return len(numbers) + len(mailboxes), more


def requeue_mailboxes(db: sqlite3.Connection, mailboxes: Sequence[tuple[Any, ...]], now: float) -> None:
    """Release mailboxes (subscription, key, ...), which become due behind the waiting ones."""
    if mailboxes:
        release_mailboxes(db, [(row[0], row[1]) for row in mailboxes], due_at=now, turn=reserve(db, 1))


def _owned(
    db: sqlite3.Connection, worker: int, keep: Collection[Claim] = ()
) -> tuple[list[int], list[tuple[int, str, int]], bool]:
    """Return some deliveries and mailboxes of a worker that are not in `keep`, and whether there may be more."""
    kept = dumps([it.deliveries[0].id for it in keep if not it.ordered])
    numbers = registry.find(db, {it.subscription for it in keep if it.ordered})
    keys = [
        (numbers[it.subscription].id, it.ordering_key or "") for it in keep if it.ordered and it.subscription in numbers
    ]
    deliveries = [number for (number,) in db.execute(_DELIVERIES, (worker, kept, RELEASED_AT_ONCE))]
    mailboxes = db.execute(_MAILBOXES, (worker, dumps(keys), MAILBOXES_AT_ONCE)).fetchall()
    return deliveries, mailboxes, len(deliveries) == RELEASED_AT_ONCE or len(mailboxes) == MAILBOXES_AT_ONCE
