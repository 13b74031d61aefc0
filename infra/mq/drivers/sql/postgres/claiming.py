"""Claims on PostgreSQL: due deliveries and mailboxes."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres.positions import SCHEDULED
from infra.mq.types import Claim, ClaimedDelivery, ClaimLimits

MOST = 1000
"""The maximum number of claims of one subscription in a call."""

_CLAIM = "SELECT * FROM beneath_claim_4($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
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
SELECT (SELECT min(due_at) FROM first),
    (SELECT due_at FROM beneath_delivery WHERE state = 3 AND due_at >= $3 ORDER BY due_at LIMIT 1)
"""  # noqa: S608  # constants only
_SCAN = f"""{_WANTED}, all_first AS MATERIALIZED (
    SELECT name, due_at FROM first
    UNION ALL (
        SELECT '{SCHEDULED}', due_at FROM beneath_delivery WHERE state = 3 AND due_at >= $3 ORDER BY due_at LIMIT 1
    )
)
SELECT array_agg(name), array_agg(due_at),
    extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision
FROM all_first
"""  # noqa: S608  # constants only
Place = tuple[float, int]


class Claimed(NamedTuple):
    """The claims of a call, the due time of the last one per name, and whether scheduled messages are due."""

    claims: list[Claim]
    latest: dict[str, float]
    scheduled_due: bool


async def next_due(
    driver: Driver, names: Collection[str], starts: Sequence[float], scheduled_start: float
) -> tuple[float | None, float | None]:
    """Return the earliest due times of deliveries of the named subscriptions, and of scheduled messages.

    Deliveries due before their subscription's time in `starts`, and messages due before `scheduled_start`, are omitted.
    """
    due_at, scheduled = await driver.fetchrow(_NEXT_DUE, list(names), starts, scheduled_start)
    return due_at, scheduled


async def scan(driver: Driver, names: Collection[str]) -> tuple[float, dict[str, float]]:
    """Search from the start of the indexes; return the server's time for that in seconds, and the first due times."""
    found, due, seconds = await driver.fetchrow(_SCAN, list(names), [-math.inf] * len(names), -math.inf)
    return seconds, dict(zip(found or (), due or (), strict=True))


async def claim(
    driver: Driver,
    worker: int,
    epoch: int,
    wants: Mapping[str, int],
    limits: ClaimLimits,
    starts: Sequence[float],
    now: float,
    *,
    scheduled_start: float = -math.inf,
) -> Claimed:
    """Claim due deliveries for `worker` within `limits`, oldest first.

    Raises:
        PostgresError: with code BN001 the worker is considered dead; with BN002 `epoch` is not its present epoch.
    """
    rows = await driver.fetch(
        _CLAIM,
        worker,
        epoch,
        list(wants),
        [min(it, MOST) for it in wants.values()],
        starts,
        scheduled_start,
        limits.mailbox_batch,
        max(limits.mailbox_batch, limits.mailbox_run),
        limits.fetch_bytes,
        limits.suspect_after,
        now,
    )
    latest: dict[str, float] = {}
    found: list[tuple[Place, Claim]] = []
    mailboxes: dict[int, Claim] = {}
    scheduled_due = bool(rows) and rows[0]["name"] is None
    for row in sorted(rows[1:] if scheduled_due else rows, key=lambda it: it["id"]):
        name, fence, place_at, place, *_ = row
        latest[name] = max(place_at, latest.get(name, place_at))
        mailbox = row["mailbox"]
        if mailbox is not None and fence in mailboxes:
            mailboxes[fence].deliveries.append(_delivery_of(row))
            continue
        claim = Claim(
            subscription=name,
            deliveries=[_delivery_of(row)],
            ordered=mailbox is not None,
            ordering_key=mailbox,
            fence=fence,
        )
        if mailbox is not None:
            mailboxes[fence] = claim
        found.append(((place_at, place), claim))
    found.sort(key=lambda it: it[0])
    return Claimed([it[1] for it in found], latest, scheduled_due)


def _delivery_of(row: Any) -> ClaimedDelivery:  # noqa: ANN401  # a row of the driver
    name, _, _, _, number, message_id, event, key, _, body, published_at, failures, deferrals, takeovers, crashes = row
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
