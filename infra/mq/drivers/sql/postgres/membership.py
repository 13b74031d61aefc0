"""Workers: joining, leaving, and what becomes of the claims of dead ones."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.types import Claim, WorkerInfo

SERVER_TIME = "extract(epoch FROM clock_timestamp())"
LIVE = f"lease_until > {SERVER_TIME}"

_JOIN = f"""
INSERT INTO beneath_worker (name, host, pid, subscriptions, joined_at, lease_until)
VALUES ($1, $2, $3, $4, $5, {SERVER_TIME} + $6) RETURNING id
"""  # noqa: S608  # constants only
_LIVE = f"SELECT name, subscriptions FROM beneath_worker WHERE {LIVE}"  # noqa: S608
# A fifth of a lease after it ran out its worker has ended what must not run beside its successor.
# A server that was away for longer than a lease lets the living renew theirs before anybody counts as dead.
_DEAD = f"""
SELECT id FROM beneath_worker WHERE lease_until = 0 OR (
    $1 AND lease_until + $2 * 0.2 <= {SERVER_TIME}
    AND {SERVER_TIME} - extract(epoch FROM pg_postmaster_start_time()) >= $2
)
"""  # noqa: S608
_LOCK_DEAD = f"SELECT id FROM beneath_worker WHERE id = $1 AND NOT {LIVE} FOR UPDATE SKIP LOCKED"  # noqa: S608
_LEAVE = "DELETE FROM beneath_worker WHERE id = $1"
_LINGER = "UPDATE beneath_worker SET subscriptions = '[]' WHERE id = $1"
_CHARGE = "takeovers = takeovers + (1 - isolated), crashes = crashes + isolated, isolated = 0"
_TAKE_OVER = f"""
UPDATE beneath_delivery SET {_CHARGE}, state = 0, owner = NULL WHERE state = 1 AND owner = $1
"""  # noqa: S608
_HELD = """
SELECT subscription, ordering_key, last_id, fence FROM beneath_mailbox WHERE state = 1 AND owner = $1
ORDER BY subscription, ordering_key FOR UPDATE
"""
_HANDED_OUT = """
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS m (subscription, key, last_id)
WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.key AND d.id <= m.last_id
"""
_CHARGE_HANDED_OUT = f"UPDATE beneath_delivery AS d SET {_CHARGE} {_HANDED_OUT}"  # noqa: S608
_UNMARK = f"UPDATE beneath_delivery AS d SET isolated = 0 {_HANDED_OUT} AND d.isolated = 1"  # noqa: S608
_GIVE_BACK = """
UPDATE beneath_mailbox AS m SET state = 0, due_at = $3, turn = nextval('beneath_number'), owner = NULL,
    last_id = NULL, parked_event = NULL
FROM unnest($1::bigint[], $2::text[]) AS b (subscription, key)
WHERE m.subscription = b.subscription AND m.ordering_key = b.key
"""
_RELEASE = """
UPDATE beneath_delivery SET state = 0, owner = NULL, isolated = 0
WHERE state = 1 AND owner = $1 AND NOT id = ANY ($2::bigint[])
"""
_NAMED = """
FROM unnest($1::text[], $2::text[]) AS k (name, event)
CROSS JOIN LATERAL (
    SELECT t.id FROM beneath_subscription AS t WHERE t.name = k.name
    UNION ALL SELECT a.subscription FROM beneath_alias AS a WHERE a.name = k.name
) AS s
"""
_HAS_PARKED = f"""
SELECT EXISTS (
    SELECT 1 {_NAMED} JOIN beneath_delivery AS d ON d.state = 2 AND d.subscription = s.id AND d.event = k.event
) OR EXISTS (
    SELECT 1 {_NAMED} JOIN beneath_mailbox AS m ON m.state = 2 AND m.subscription = s.id AND m.parked_event = k.event
)
"""
_UNPARK = """
UPDATE beneath_delivery SET state = 0 WHERE id IN (
    SELECT d.id {} JOIN beneath_delivery AS d ON d.state = 2 AND d.subscription = s.id AND d.event = k.event
) AND state = 2
""".format(_NAMED)  # noqa: UP032
_PARKED_MAILBOXES = f"""
SELECT m.subscription, m.ordering_key {_NAMED}
JOIN beneath_mailbox AS m ON m.state = 2 AND m.subscription = s.id AND m.parked_event = k.event
ORDER BY m.subscription, m.ordering_key FOR UPDATE OF m
"""


async def join(driver: Driver, info: WorkerInfo, now: float, lease: float) -> int:
    """Register a worker; return the number under which it owns things."""
    names = json.dumps(sorted(info.subscriptions))
    number: int = await driver.fetchval(_JOIN, info.id, info.host, info.pid, names, now, lease)
    return number


async def live(driver: Driver) -> list[tuple[str, frozenset[str]]]:
    """Return the id and the subscriptions of each live worker."""
    return [(row[0], frozenset(json.loads(row[1]))) for row in await driver.fetch(_LIVE)]


async def dead(driver: Driver, lease: float, *, steady: bool) -> list[int]:
    """Return the dead workers; those whose lease has just run out only if this process was `steady`."""
    return [row[0] for row in await driver.fetch(_DEAD, steady, lease)]


async def take_over(driver: Driver, worker: int, now: float) -> int:
    """Take everything from a dead worker and charge the deliveries; return how many, 0 for all but the first call."""
    if not await driver.fetch(_LOCK_DEAD, worker):
        return 0
    await driver.execute(_LEAVE, worker)
    charged = _count(await driver.execute(_TAKE_OVER, worker))
    held = await driver.fetch(_HELD, worker)
    charged += _count(await driver.execute(_CHARGE_HANDED_OUT, *_columns(held, 3)))
    await _give_back(driver, held, now)
    return charged


async def leave(driver: Driver, worker: int, keep: Collection[Claim], now: float) -> None:
    """Give back what a worker owns but for the claims it keeps; unregister it if it keeps none."""
    fences = {it.fence for it in keep if it.ordered}
    await driver.execute(_RELEASE, worker, [it.deliveries[0].id for it in keep if not it.ordered])
    held = [row for row in await driver.fetch(_HELD, worker) if row["fence"] not in fences]
    await driver.execute(_UNMARK, *_columns(held, 3))
    await _give_back(driver, held, now)
    # Its row must outlive it as long as it owns something: it is by the row that others find what to take over.
    await driver.execute(_LINGER if keep else _LEAVE, worker)


async def has_parked(driver: Driver, known: Mapping[str, Collection[str]]) -> bool:
    """Return whether `unpark` would find anything; writes nothing."""
    return bool(await driver.fetchval(_HAS_PARKED, *_pairs(known)))


async def unpark(driver: Driver, known: Mapping[str, Collection[str]], now: float) -> int:
    """Make parked deliveries due whose event is known; return how many."""
    count = _count(await driver.execute(_UNPARK, *_pairs(known)))
    mailboxes = await driver.fetch(_PARKED_MAILBOXES, *_pairs(known))
    await _give_back(driver, mailboxes, now)
    return count + len(mailboxes)


async def _give_back(driver: Driver, mailboxes: Sequence[Any], now: float) -> None:
    if mailboxes:
        await driver.execute(_GIVE_BACK, *_columns(mailboxes, 2), now)


def _columns(rows: Sequence[Any], count: int) -> list[list[Any]]:
    return [[row[nth] for row in rows] for nth in range(count)]


def _pairs(known: Mapping[str, Collection[str]]) -> tuple[list[str], list[str]]:
    pairs = [(name, event) for name, events in known.items() for event in events]
    return [it[0] for it in pairs], [it[1] for it in pairs]


def _count(tag: str) -> int:
    """Return how many rows a command tag counts."""
    return int(tag.rpartition(" ")[2])
