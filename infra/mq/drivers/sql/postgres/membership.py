"""Workers on PostgreSQL: joining, leaving, and taking over the claims of dead ones.

Operations on many claims run in steps, each in its own transaction. A transaction that ends a worker first locks the
worker's row, which every claim locks too, so that no claim is in flight; then it raises the worker's epoch, so that no
later claim is carried out. The row is deleted last, because other processes need it to continue a takeover.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.types import Claim, WorkerInfo

STEP = 500
"""The maximum number of deliveries in a step, and of mailboxes."""

SERVER_TIME = "extract(epoch FROM clock_timestamp())"

_JOIN = f"""
INSERT INTO beneath_worker AS w (name, host, pid, subscriptions, joined_at, lease_until)
VALUES ($1, $2, $3, $4, $5, {SERVER_TIME} + $6)
ON CONFLICT (name) DO UPDATE SET lease_until = excluded.lease_until, epoch = w.epoch + 1
RETURNING id, epoch
"""  # noqa: S608  # constants only
# After the server's clock was set back, lease ends are far ahead; live workers correct theirs at the next renewal.
_LIVE = f"""
SELECT name, subscriptions FROM beneath_worker
WHERE lease_until > {SERVER_TIME} AND lease_until <= {SERVER_TIME} + $1 * 2
"""  # noqa: S608
_LEASES = "SELECT id, lease_until FROM beneath_worker"
_SILENT = f"""
SELECT id, name, subscriptions, lease_until FROM beneath_worker
WHERE lease_until > 0 AND NOT (lease_until > {SERVER_TIME} AND lease_until <= {SERVER_TIME} + $1 * 2)
"""  # noqa: S608
_LOCK = "SELECT epoch FROM beneath_worker WHERE id = $1 AND lease_until > 0 FOR UPDATE"
_LOCK_DEAD = "SELECT 1 FROM beneath_worker WHERE id = $1 AND lease_until = $2 FOR UPDATE SKIP LOCKED"
_END = "UPDATE beneath_worker SET lease_until = 0, epoch = epoch + 1 WHERE id = $1"
_RAISE_EPOCH = "UPDATE beneath_worker SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch"
_LEAVE = "DELETE FROM beneath_worker WHERE id = $1"
_LINGER = "UPDATE beneath_worker SET subscriptions = '[]' WHERE id = $1"
_OWNERS = """
WITH RECURSIVE owners (owner) AS (
    (SELECT {owner} FROM {table} WHERE state = 1 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT d.owner FROM {table} AS d WHERE d.state = 1 AND d.owner > o.owner ORDER BY d.owner LIMIT 1)
    FROM owners AS o WHERE o.owner IS NOT NULL
)
SELECT o.owner FROM owners AS o
WHERE o.owner IS NOT NULL AND NOT EXISTS (SELECT 1 FROM beneath_worker AS w WHERE w.id = o.owner)
"""
# One owner after the other, by the index of claims, so that not every claim is read.
_ORPHANS = " UNION ".join(
    f"({_OWNERS.format(owner='owner', table=table)})" for table in ("beneath_delivery", "beneath_mailbox")
)
_CHARGE = "takeovers = takeovers + (1 - isolated), crashes = crashes + isolated, isolated = 0"
_TAKEN = """
id = ANY (ARRAY(
    SELECT id FROM beneath_delivery WHERE state = 1 AND owner = $1 AND NOT id = ANY ($3::bigint[]) LIMIT $2
    FOR UPDATE SKIP LOCKED
))
"""
_TAKE_OVER = f"UPDATE beneath_delivery SET {_CHARGE}, state = 0, owner = NULL WHERE {_TAKEN}"  # noqa: S608
_RELEASE = f"UPDATE beneath_delivery SET isolated = 0, state = 0, owner = NULL WHERE {_TAKEN}"  # noqa: S608
_HELD = """
SELECT subscription, ordering_key, last_id FROM beneath_mailbox
WHERE state = 1 AND owner = $1 AND NOT fence = ANY ($3::bigint[]) LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_OWNS = """
SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 1 AND owner = $1 AND NOT id = ANY ($2::bigint[]))
    OR EXISTS (SELECT 1 FROM beneath_mailbox WHERE state = 1 AND owner = $1 AND NOT fence = ANY ($3::bigint[]))
"""
# OFFSET in a lateral subquery makes the planner execute it for each row on its left, by index.
_HANDED_OUT = """
id = ANY (ARRAY(
    SELECT t.id FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS m (subscription, key, last_id)
    CROSS JOIN LATERAL (
        SELECT d.id FROM beneath_delivery AS d
        WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.key AND d.id <= m.last_id OFFSET 0
    ) AS t
))
"""
_CHARGE_HANDED_OUT = f"UPDATE beneath_delivery SET {_CHARGE} WHERE {_HANDED_OUT}"  # noqa: S608
_UNMARK = f"UPDATE beneath_delivery SET isolated = 0 WHERE {_HANDED_OUT} AND isolated = 1"  # noqa: S608
# The caller has locked the mailboxes, so that their ctid does not change.
_REQUEUE_MAILBOXES = """
UPDATE beneath_mailbox SET state = 0, due_at = $3, turn = nextval('beneath_number'), owner = NULL, last_id = NULL,
    parked_event = NULL
WHERE ctid = ANY (ARRAY(
    SELECT t.place FROM unnest($1::bigint[], $2::text[]) AS b (subscription, key) CROSS JOIN LATERAL (
        SELECT m.ctid AS place FROM beneath_mailbox AS m
        WHERE m.subscription = b.subscription AND m.ordering_key = b.key OFFSET 0
    ) AS t
))
"""
_UNKNOWN = """
state = 1 AND owner = $1 AND fence > $2 AND NOT fence = ANY ($3::bigint[])
"""
_RELEASE_UNKNOWN = f"UPDATE beneath_delivery SET state = 0, owner = NULL WHERE {_UNKNOWN}"  # noqa: S608
_RELEASE_UNKNOWN_MAILBOXES = f"""
UPDATE beneath_mailbox
SET state = 0, owner = NULL, last_id = NULL, due_at = $4, turn = nextval('beneath_number') WHERE {_UNKNOWN}
"""  # noqa: S608
_NAMED = """
FROM unnest($1::text[], $2::text[]) AS k (name, known)
CROSS JOIN LATERAL (
    SELECT t.id FROM beneath_subscription AS t WHERE t.name = k.name
    UNION ALL SELECT a.subscription FROM beneath_alias AS a WHERE a.name = k.name
) AS s
"""
_PARKED = """
CROSS JOIN LATERAL (
    SELECT t.id FROM beneath_delivery AS t
    WHERE t.state = 2 AND t.subscription = s.id AND coalesce(t.needs, t.event) = k.known LIMIT {limit}
) AS d
"""
_PARKED_MAILBOX = """
CROSS JOIN LATERAL (
    SELECT t.subscription, t.ordering_key FROM beneath_mailbox AS t
    WHERE t.state = 2 AND t.subscription = s.id AND t.parked_event = k.known LIMIT {limit}
) AS m
"""
_LOCKED = "$3 FOR UPDATE SKIP LOCKED"
_HAS_PARKED = f"""
SELECT EXISTS (SELECT 1 {_NAMED} {_PARKED.format(limit=1)})
    OR EXISTS (SELECT 1 {_NAMED} {_PARKED_MAILBOX.format(limit=1)})
"""
_UNPARK = f"""
UPDATE beneath_delivery SET state = 0, needs = NULL WHERE id = ANY (ARRAY(
    SELECT d.id {_NAMED} {_PARKED.format(limit=_LOCKED)} LIMIT $3
))
"""  # noqa: S608
_PARKED_MAILBOXES = f"""
SELECT m.subscription, m.ordering_key {_NAMED} {_PARKED_MAILBOX.format(limit=_LOCKED)} LIMIT $3
"""


async def join(driver: Driver, info: WorkerInfo, now: float, lease: float) -> tuple[int, int]:
    """Register a worker; return the number that marks its claims as owner, and its epoch."""
    names = json.dumps(sorted(info.subscriptions))
    number, epoch = await driver.fetchrow(_JOIN, info.id, info.host, info.pid, names, now, lease)
    return number, epoch


async def live(driver: Driver, lease: float) -> list[tuple[str, frozenset[str]]]:
    """Return the id and the subscriptions of each worker that has renewed its lease in time."""
    return [(row[0], frozenset(json.loads(row[1]))) for row in await driver.fetch(_LIVE, lease)]


async def silent(driver: Driver, lease: float) -> dict[int, tuple[str, frozenset[str], float]]:
    """Return the id, the subscriptions and the lease end of each worker whose lease looks expired.

    Such a worker may be alive, because a step of the server's clock can end leases; only its next renewal shows that.
    """
    rows = await driver.fetch(_SILENT, lease)
    return {row[0]: (row[1], frozenset(json.loads(row[2])), row[3]) for row in rows}


async def leases(driver: Driver) -> list[tuple[int, float]]:
    """Return the number and the end of the lease of every worker."""
    return [(row[0], row[1]) for row in await driver.fetch(_LEASES)]


async def orphans(driver: Driver) -> list[int]:
    """Return the owners of claims that are not registered as workers."""
    return [row[0] for row in await driver.fetch(_ORPHANS)]


async def end(driver: Driver, worker: int, lease_until: float) -> None:
    """End a worker's lease, unless the worker has renewed it since, or a claim of the worker is in flight."""
    if await driver.fetch(_LOCK_DEAD, worker, lease_until):
        await driver.execute(_END, worker)


async def take_over(driver: Driver, worker: int, now: float, *, orphan: bool = False) -> tuple[int, bool]:
    """Take over a step's worth of a dead worker's deliveries; return their number, and whether to continue.

    Each delivery counts a takeover or a crash. An `orphan` is an owner that is not registered.
    """
    if not orphan and not await driver.fetch(_LOCK_DEAD, worker, 0.0):
        return 0, False
    taken = _count(await driver.execute(_TAKE_OVER, worker, STEP, []))
    held = await driver.fetch(_HELD, worker, STEP, [])
    charged = taken + _count(await driver.execute(_CHARGE_HANDED_OUT, *_columns(held, 3)))
    await _requeue(driver, held, now)
    if await driver.fetchval(_OWNS, worker, [], []):
        return charged, taken + len(held) > 0
    await driver.execute(_LEAVE, worker)
    return charged, False


async def begin_to_leave(driver: Driver, worker: int) -> bool:
    """Prevent further claims of a worker; return False if the worker was taken over."""
    if not await driver.fetch(_LOCK, worker):
        return False
    await driver.execute(_RAISE_EPOCH, worker)
    return True


async def leave(driver: Driver, worker: int, keep: Collection[Claim], now: float) -> tuple[int, bool]:
    """Release a step's worth of a worker's claims but `keep`; return their number, and whether to continue.

    The last step unregisters the worker if it keeps none.
    """
    # Unordered claims of one answer share a fence, so they are told apart by delivery.
    ids = [it.deliveries[0].id for it in keep if not it.ordered]
    fences = [it.fence for it in keep if it.ordered]
    released = _count(await driver.execute(_RELEASE, worker, STEP, ids))
    held = await driver.fetch(_HELD, worker, STEP, fences)
    await driver.execute(_UNMARK, *_columns(held, 3))
    await _requeue(driver, held, now)
    if await driver.fetchval(_OWNS, worker, ids, fences):
        return released + len(held), True
    await driver.execute(_LINGER if keep else _LEAVE, worker)
    return released + len(held), False


async def release_unknown(
    driver: Driver, worker: int, epoch: int, since: int, known: Collection[int], now: float
) -> tuple[int, bool] | None:
    """Void claims in flight, and release claims with fences above `since` that are not `known`, without counting.

    A worker with another epoch than `epoch` has released claims meanwhile and may have claimed again, so that `known`
    is outdated: nothing is released then.

    Return the worker's present epoch, and whether claims were released; None if the worker was taken over.
    """
    rows = await driver.fetch(_LOCK, worker)
    if not rows:
        return None
    if rows[0][0] != epoch:
        return rows[0][0], False
    raised: int = await driver.fetchval(_RAISE_EPOCH, worker)
    await driver.execute(_RELEASE_UNKNOWN, worker, since, list(known))
    await driver.execute(_RELEASE_UNKNOWN_MAILBOXES, worker, since, list(known), now)
    return raised, True


async def has_parked(driver: Driver, known: Mapping[str, Collection[str]]) -> bool:
    """Return whether `unpark` would find any delivery; writes nothing."""
    return bool(await driver.fetchval(_HAS_PARKED, *_pairs(known)))


async def unpark(driver: Driver, known: Mapping[str, Collection[str]], now: float) -> tuple[int, bool]:
    """Make some parked deliveries due whose needs are known; return their number, and whether to continue."""
    count = _count(await driver.execute(_UNPARK, *_pairs(known), STEP))
    mailboxes = await driver.fetch(_PARKED_MAILBOXES, *_pairs(known), STEP)
    await _requeue(driver, mailboxes, now)
    return count + len(mailboxes), count == STEP or len(mailboxes) == STEP


async def _requeue(driver: Driver, mailboxes: Sequence[Any], now: float) -> None:
    if mailboxes:
        await driver.execute(_REQUEUE_MAILBOXES, *_columns(mailboxes, 2), now)


def _columns(rows: Sequence[Any], count: int) -> list[list[Any]]:
    return [[row[nth] for row in rows] for nth in range(count)]


def _pairs(known: Mapping[str, Collection[str]]) -> tuple[list[str], list[str]]:
    pairs = [(name, event) for name, events in known.items() for event in events]
    return [it[0] for it in pairs], [it[1] for it in pairs]


def _count(tag: str) -> int:
    """Return the number of rows in a command tag."""
    return int(tag.rpartition(" ")[2])
