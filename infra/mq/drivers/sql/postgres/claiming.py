"""What a worker takes: deliveries that are due, and mailboxes."""

from collections.abc import Collection, Mapping
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.queue import MAILBOX_BATCH
from infra.mq.types import Claim, Delivery

_CLAIM = "SELECT * FROM beneath_claim_1($1, $2, $3, $4, $5)"
_NEXT_DUE = """
WITH wanted AS MATERIALIZED (
    SELECT s.id, s.ordered FROM beneath_subscription AS s WHERE s.name = ANY ($1::text[]) AND s.paused = 0
    UNION
    SELECT s.id, s.ordered FROM beneath_alias AS a JOIN beneath_subscription AS s ON s.id = a.subscription
    WHERE a.name = ANY ($1::text[]) AND s.paused = 0
)
SELECT (
    SELECT min(d.due_at) FROM wanted AS w CROSS JOIN LATERAL (
        SELECT t.due_at FROM beneath_delivery AS t WHERE t.state = 0 AND t.subscription = w.id
        ORDER BY t.due_at LIMIT 1
    ) AS d WHERE w.ordered = 0
), (
    SELECT min(m.due_at) FROM wanted AS w CROSS JOIN LATERAL (
        SELECT t.due_at FROM beneath_mailbox AS t WHERE t.state = 0 AND t.subscription = w.id
        ORDER BY t.due_at LIMIT 1
    ) AS m WHERE w.ordered = 1
), (
    SELECT due_at FROM beneath_delivery WHERE state = 3 ORDER BY due_at LIMIT 1
)
"""
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


async def next_due(driver: Driver, names: Collection[str]) -> tuple[float | None, float | None]:
    """Return when the earliest delivery of the named subscriptions is due, and the earliest scheduled message."""
    unordered, ordered, scheduled = await driver.fetchrow(_NEXT_DUE, list(names))
    return min((it for it in (unordered, ordered) if it is not None), default=None), scheduled


async def claim(driver: Driver, worker: int, wants: Mapping[str, int], now: float) -> list[Claim]:
    """Give `worker` what is due, oldest first."""
    limits = [min(it, 1_000_000) for it in wants.values()]
    rows = await driver.fetch(_CLAIM, worker, list(wants), limits, MAILBOX_BATCH, now)
    found: list[tuple[Place, Claim]] = []
    mailboxes: dict[int, Claim] = {}
    for row in sorted(rows, key=lambda it: it["id"]):
        name, fence, place_at, place = row[:4]
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
    return [it[1] for it in found]


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
