"""Claims on SQLite: due deliveries and mailboxes."""

import sqlite3
from collections.abc import Iterable, Mapping
from itertools import chain, count
from json import dumps, loads
from operator import itemgetter
from typing import Any

from infra.mq.drivers.sql.sqlite.mailboxes import drop, heads
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.retiring import Retiring
from infra.mq.drivers.sql.sqlite.scheduling import HAS_DUE, promote
from infra.mq.errors import QueueClosed
from infra.mq.types import Claim, ClaimedDelivery, ClaimLimits

CLAIMED_AT_ONCE = 1000
"""The maximum number of deliveries in a call, over all subscriptions."""

_COLUMNS = """
d.id, message_id, event, ordering_key, body, published_at, failures, deferrals, takeovers, crashes
"""
_IS_MEMBER = "SELECT EXISTS (SELECT 1 FROM beneath_worker WHERE id = ?), EXISTS (SELECT 1 FROM beneath_retirement)"
_WANTED = f"""
SELECT w.value, s.id, s.ordered, {HAS_DUE} FROM json_each(:names) AS w
CROSS JOIN beneath_subscription AS s ON s.name = w.value WHERE s.paused = 0
UNION ALL
SELECT w.value, s.id, s.ordered, {HAS_DUE} FROM json_each(:names) AS w
CROSS JOIN beneath_alias AS a ON a.name = w.value
CROSS JOIN beneath_subscription AS s ON s.id = a.subscription WHERE s.paused = 0
"""  # noqa: S608  # constants only
_READY = f"""
SELECT {_COLUMNS}, fence, due_at FROM beneath_delivery AS d INDEXED BY beneath_delivery_ready
WHERE state = 0 AND subscription = ? AND due_at <= ? ORDER BY due_at, d.id LIMIT ?
"""  # noqa: S608  # constants only
_CLAIM = """
UPDATE beneath_delivery SET state = 1, owner = ?, fence = fence + 1 WHERE id IN (SELECT value FROM json_each(?))
"""
_READY_MAILBOXES = """
SELECT m.ordering_key, m.due_at, m.turn, (
    SELECT json_group_array(id) FROM (
        SELECT d.id FROM beneath_delivery AS d INDEXED BY beneath_delivery_mailbox
        WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT ?
    )
)
FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_ready
WHERE m.state = 0 AND m.subscription = ? AND m.due_at <= ? ORDER BY m.due_at, m.turn LIMIT ?
"""
_HEADS = f"""
SELECT {_COLUMNS} FROM json_each(?) AS w CROSS JOIN beneath_delivery AS d ON d.id = w.value
"""  # noqa: S608  # constants only
_CLAIM_MAILBOX = """
UPDATE beneath_mailbox SET state = 1, owner = ?, fence = ?, last_id = ? WHERE subscription = ? AND ordering_key = ?
"""
_NEXT_DUE = """
WITH wanted (id, ordered) AS MATERIALIZED (
    SELECT s.id, s.ordered FROM json_each(:names) AS w
    CROSS JOIN beneath_subscription AS s ON s.name = w.value WHERE s.paused = 0
    UNION ALL
    SELECT s.id, s.ordered FROM json_each(:names) AS w
    CROSS JOIN beneath_alias AS a ON a.name = w.value
    CROSS JOIN beneath_subscription AS s ON s.id = a.subscription WHERE s.paused = 0
)
SELECT min(due_at) FROM (
    SELECT (
        SELECT d.due_at FROM beneath_delivery AS d INDEXED BY beneath_delivery_ready
        WHERE d.state = 0 AND d.subscription = s.id ORDER BY d.due_at LIMIT 1
    ) AS due_at FROM wanted AS s WHERE s.ordered = 0
    UNION ALL
    SELECT (
        SELECT m.due_at FROM beneath_mailbox AS m INDEXED BY beneath_mailbox_ready
        WHERE m.state = 0 AND m.subscription = s.id ORDER BY m.due_at LIMIT 1
    ) FROM wanted AS s WHERE s.ordered = 1
    UNION ALL
    SELECT (
        SELECT d.due_at FROM beneath_delivery AS d INDEXED BY beneath_delivery_scheduled
        WHERE d.state = 3 AND d.subscription = s.id ORDER BY d.due_at LIMIT 1
    ) FROM wanted AS s
)
"""

_turns = count()

Row = tuple[Any, ...]
Placed = tuple[float, int, Claim]
"""A due time, a number, and the claim that is ordered by them."""


class _Capacity:
    """The deliveries and bytes that a call may still claim."""

    def __init__(self, size: int) -> None:
        self.deliveries = CLAIMED_AT_ONCE
        self._bytes = size
        self._empty = True

    def take(self, cursor: sqlite3.Cursor) -> list[Row]:
        """Return the first rows that fit, and reduce the capacity; the first row of a call always fits."""
        rows: list[Row] = []
        deliveries, left, empty = self.deliveries, self._bytes, self._empty
        for row in cursor:
            size = len(row[4])
            if not empty and (deliveries <= 0 or left < size):
                break
            empty = False
            deliveries -= 1
            left -= size
            rows.append(row)
        cursor.close()
        self.deliveries, self._bytes, self._empty = deliveries, left, empty
        return rows


def next_due(db: sqlite3.Connection, names: Iterable[str]) -> float | None:
    """Return when the earliest delivery of the named subscriptions is due."""
    (due_at,) = db.execute(_NEXT_DUE, {"names": dumps(list(names))}).fetchone()
    return None if due_at is None else float(due_at)


def claim(
    db: sqlite3.Connection, worker: int, wants: Mapping[str, int], limits: ClaimLimits, *, now: float
) -> list[Claim]:
    """Claim due deliveries for `worker` within `limits`, oldest first.

    Raises:
        QueueClosed: the worker is not registered any more.
    """
    is_member, retiring = db.execute(_IS_MEMBER, (worker,)).fetchone()
    if not is_member:
        raise QueueClosed("this worker is considered dead: its claims were taken over")
    wanted = db.execute(_WANTED, {"names": dumps(list(wants)), "now": now}).fetchall()
    if behind := [subscription for _, subscription, _, has_due in wanted if has_due]:
        promote(db, behind, now)
    # Rotate the order, so that a call's limits do not always favour the same subscription.
    start = next(_turns) % len(wanted) if wanted else 0
    claiming_pass = _ClaimPass(db, worker, limits, Retiring(db, now) if retiring else None, now)
    found: list[Placed] = []
    for name, subscription, ordered, _ in (*wanted[start:], *wanted[:start]):
        if (limit := min(wants[name], claiming_pass.capacity.deliveries)) > 0:
            take = claiming_pass.mailboxes if ordered else claiming_pass.deliveries
            found += take(name, subscription, limit)
    found.sort(key=itemgetter(0, 1))
    return [it[2] for it in found]


class _ClaimPass:
    """One call of `claim`, over all subscriptions."""

    def __init__(
        self, db: sqlite3.Connection, worker: int, limits: ClaimLimits, retiring: Retiring | None, now: float
    ) -> None:
        self.capacity = _Capacity(limits.fetch_bytes)
        self._limits = limits
        self._db = db
        self._worker = worker
        self._retiring = retiring
        self._now = now

    def deliveries(self, name: str, subscription: int, limit: int) -> list[Placed]:
        """Claim up to `limit` deliveries of an unordered subscription."""
        rows = self.capacity.take(self._db.execute(_READY, (subscription, self._now, limit)))
        rows = self._claimable(subscription, rows)
        if rows:
            self._db.execute(_CLAIM, (self._worker, dumps([row[0] for row in rows])))
        return [
            (row[-1], row[0], Claim(subscription=name, deliveries=[_delivery_of(row, name)], fence=row[-2] + 1))
            for row in rows
        ]

    def mailboxes(self, name: str, subscription: int, limit: int) -> list[Placed]:
        """Claim up to `limit` mailboxes of an ordered subscription."""
        batch, suspect_after = self._limits.mailbox_batch, self._limits.suspect_after
        mailboxes = self._db.execute(_READY_MAILBOXES, (batch, subscription, self._now, limit)).fetchall()
        if not mailboxes:
            return []
        # All mailboxes are read together: with many keys, a statement for each would cost more than the deliveries.
        first_ids = [sorted(it) for it in loads(f"[{','.join(mailbox[3] for mailbox in mailboxes)}]")]
        # `json_each` keeps the array's order, so the rows of each mailbox follow those of the one before.
        cursor = self._db.execute(_HEADS, (dumps(list(chain.from_iterable(first_ids))),))
        taken, at = self.capacity.take(cursor), 0
        found: list[Placed] = []
        claimed: list[tuple[int, int, int, int, str]] = []
        fence = reserve(self._db, 1)
        for (key, due_at, turn, _), numbers in zip(mailboxes, first_ids, strict=True):
            rows, at = taken[at : at + len(numbers)], at + len(numbers)
            rows = _alone_if_suspect(self._claimable(subscription, rows), suspect_after)
            if not rows:
                if heads(self._db, subscription, key):
                    break  # no capacity left
                drop(self._db, [(subscription, key)])
                continue
            claimed.append((self._worker, fence, rows[-1][0], subscription, key))
            deliveries = [_delivery_of(row, name) for row in rows]
            claim = Claim(subscription=name, deliveries=deliveries, ordered=True, ordering_key=key, fence=fence)
            found.append((due_at, turn, claim))
        self._db.executemany(_CLAIM_MAILBOX, claimed)
        return found

    def _claimable(self, subscription: int, rows: list[Row]) -> list[Row]:
        """Return the rows that are not being retired."""
        return rows if self._retiring is None else self._retiring.without(subscription, rows)


def _alone_if_suspect(rows: list[Row], suspect_after: int) -> list[Row]:
    """Return the rows before the first suspect, or the suspect alone if it is the head."""
    for place, row in enumerate(rows):
        if row[8] >= suspect_after:
            return rows[: max(place, 1)]
    return rows


def _delivery_of(row: Row, name: str) -> ClaimedDelivery:
    number, message_id, event, key, body, published_at, failures, deferrals, takeovers, crashes, *_ = row
    return ClaimedDelivery(
        id=number,
        subscription=name,
        message_id=message_id,
        event=event,
        ordering_key=key,
        body=body,
        published_at=published_at,
        failures=failures,
        deferrals=deferrals,
        takeovers=takeovers,
        crashes=crashes,
    )
