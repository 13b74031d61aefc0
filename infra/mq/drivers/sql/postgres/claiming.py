"""What a worker takes: deliveries that are due, and mailboxes."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.queue import MAILBOX_BATCH
from infra.mq.types import Claim, Delivery

_CLAIM = "SELECT * FROM beneath_claim_1($1, $2, $3, $4, $5, $6)"
_WANTED = """
WITH wanted AS MATERIALIZED (
    SELECT w.name, w.start, s.id, s.ordered FROM unnest($1::text[], $2::double precision[]) AS w (name, start)
    CROSS JOIN LATERAL (
        SELECT t.id, t.ordered FROM beneath_subscription AS t WHERE t.name = w.name AND t.paused = 0
        UNION ALL
        SELECT t.id, t.ordered FROM beneath_alias AS a JOIN beneath_subscription AS t ON t.id = a.subscription
        WHERE a.name = w.name AND t.paused = 0
    ) AS s
), first AS MATERIALIZED (
    SELECT w.name, d.due_at FROM wanted AS w CROSS JOIN LATERAL (
        SELECT t.due_at FROM beneath_delivery AS t
        WHERE t.state = 0 AND t.subscription = w.id AND t.due_at >= w.start ORDER BY t.due_at LIMIT 1
    ) AS d WHERE w.ordered = 0
    UNION ALL
    SELECT w.name, m.due_at FROM wanted AS w CROSS JOIN LATERAL (
        SELECT t.due_at FROM beneath_mailbox AS t
        WHERE t.state = 0 AND t.subscription = w.id AND t.due_at >= w.start ORDER BY t.due_at LIMIT 1
    ) AS m WHERE w.ordered = 1
)
"""
_NEXT_DUE = f"""{_WANTED}
SELECT (SELECT min(due_at) FROM first), (SELECT due_at FROM beneath_delivery WHERE state = 3 ORDER BY due_at LIMIT 1)
"""  # noqa: S608  # constants only
_LOOK = f"""{_WANTED}
SELECT array_agg(name), array_agg(due_at),
    extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision
FROM first
"""  # noqa: S608  # constants only
_RELEASE_UNKNOWN = """
UPDATE beneath_delivery SET state = 0, owner = NULL
WHERE state = 1 AND owner = $1 AND NOT id = ANY ($2::bigint[])
"""
_RELEASE_UNKNOWN_MAILBOXES = """
UPDATE beneath_mailbox
SET state = 0, owner = NULL, last_id = NULL, due_at = $3, turn = nextval('beneath_number')
WHERE state = 1 AND owner = $1 AND NOT fence = ANY ($2::bigint[])
"""

Place = tuple[float, int]


async def next_due(
    driver: Driver, names: Collection[str], starts: Sequence[float]
) -> tuple[float | None, float | None]:
    """Return when the earliest delivery of the named subscriptions is due, and the earliest scheduled message.

    What was due before its subscription's time in `starts` is not looked at.
    """
    due_at, scheduled = await driver.fetchrow(_NEXT_DUE, list(names), starts)
    return due_at, scheduled


async def look(driver: Driver, names: Collection[str]) -> tuple[float, dict[str, float]]:
    """Return how many seconds a look at all that is kept took the server, and when the first of each name is due."""
    found, due, seconds = await driver.fetchrow(_LOOK, list(names), [-math.inf] * len(names))
    return seconds, dict(zip(found or (), due or (), strict=True))


async def claim(
    driver: Driver, worker: int, wants: Mapping[str, int], starts: Sequence[float], now: float
) -> tuple[list[Claim], dict[str, float]]:
    """Give `worker` what is due, oldest first; return it, and when the last of each name was due."""
    limits = [min(it, 1_000_000) for it in wants.values()]
    rows = await driver.fetch(_CLAIM, worker, list(wants), limits, starts, MAILBOX_BATCH, now)
    latest: dict[str, float] = {}
    found: list[tuple[Place, Claim]] = []
    mailboxes: dict[int, Claim] = {}
    for row in sorted(rows, key=lambda it: it["id"]):
        name, fence, place_at, place = row[:4]
        latest[name] = max(place_at, latest.get(name, place_at))
        if fence and fence in mailboxes:
            mailboxes[fence].deliveries.append(_delivery_of(row))
            continue
        claim = Claim(
            subscription=name,
            deliveries=[_delivery_of(row)],
            ordered=fence != 0,
            ordering_key=row["mailbox"],
            fence=fence,
        )
        if fence:
            mailboxes[fence] = claim
        found.append(((place_at, place), claim))
    found.sort(key=lambda it: it[0])
    return [it[1] for it in found], latest


async def release_unknown(
    driver: Driver, worker: int, deliveries: Collection[int], fences: Collection[int], now: float
) -> None:
    """Give back, uncharged, what `worker` owns beyond these: claims whose answer was lost."""
    await driver.execute(_RELEASE_UNKNOWN, worker, list(deliveries))
    await driver.execute(_RELEASE_UNKNOWN_MAILBOXES, worker, list(fences), now)


def _delivery_of(row: Any) -> Delivery:  # noqa: ANN401  # a row of the driver
    name, _, _, _, number, message_id, event, key, _, body, published_at, failures, deferrals, takeovers, crashes = row
    return Delivery(
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
