"""Publishing on PostgreSQL: deduplication, fan-out, schedule, cancel and promotion."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.types import Message

DONE, PROMOTE, ROUTES_WANTED = range(3)
"""The results of the SQL function `beneath_publish_2`."""

STEP = 200
"""The maximum number of deliveries that a step promotes."""

PUBLISHED_AT_ONCE = 5000
"""The maximum number of messages in a statement."""

BYTES_AT_ONCE = 32 * 1024 * 1024
"""The maximum size of their bodies, in bytes."""

FORGOTTEN_AT_ONCE = 1000
"""The maximum number of expired rows that a step removes: accepted ids, or broadcast frames."""

_PUBLISH = "SELECT beneath_publish_2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
_ROUTES = """
SELECT r.event, s.id, s.ordered = 1 FROM beneath_route AS r JOIN beneath_subscription AS s ON s.id = r.subscription
WHERE r.event = ANY ($1::text[])
"""
_PROMOTE = "SELECT * FROM beneath_promote_2($1, $2, $3, $4, $5)"
_CANCEL = """
WITH first AS MATERIALIZED (
    SELECT id, event FROM beneath_delivery WHERE state + 0 = 3 AND message_id = $1 AND due_at > $2
    ORDER BY id FOR UPDATE
), forgotten AS (
    DELETE FROM beneath_accepted WHERE id = $1 AND event = ANY (ARRAY(SELECT event FROM first))
), forgotten_before AS (
    DELETE FROM beneath_dedupe WHERE id = $1 AND EXISTS (SELECT 1 FROM first)
)
DELETE FROM beneath_delivery WHERE id IN (SELECT id FROM first) RETURNING 1
"""
_SCHEDULED = "SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE state + 0 = 3 AND message_id = $1 AND due_at > $2)"
_FORGET = """
WITH expired AS MATERIALIZED (
    SELECT event, id, at FROM beneath_accepted WHERE at >= $3 AND at <= $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM beneath_accepted AS a USING expired AS e WHERE a.event = e.event AND a.id = e.id
)
SELECT count(*), max(at) FROM expired
"""
_FORGET_BEFORE = """
WITH expired AS MATERIALIZED (
    SELECT id, at FROM beneath_dedupe WHERE at >= $3 AND at <= $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM beneath_dedupe WHERE id = ANY (ARRAY(SELECT id FROM expired))
)
SELECT count(*), max(at) FROM expired
"""

Position = tuple[float, int]
"""The end of a promotion step: the due time and the number of its last delivery."""

START: Position = (-math.inf, 0)

Routes = tuple[list[str], list[int], list[bool]]


async def publish(
    driver: Driver,
    messages: Sequence[Message],
    now: float,
    dedupe_window: float,
    routes: Routes | None = None,
    patience: float | None = None,
) -> int:
    """Store one delivery of every message for each subscription of its event; return what the caller must do next.

    `patience` limits the wait for a lock, in seconds; it must be None inside the application's transactions.
    """
    longest = None if patience is None else f"{max(1, int(patience * 1000))}ms"
    answer: int = await driver.fetchval(
        _PUBLISH, *_columns(messages), now, now - dedupe_window, *(routes or (None, None, None)), longest
    )
    return answer


async def routes_of(driver: Driver, messages: Sequence[Message]) -> Routes:
    """Return the subscriptions of the messages' events."""
    rows = await driver.fetch(_ROUTES, list({it.event for it in messages}))
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


async def promote(
    driver: Driver, now: float, *, after: Position = START, message_ids: Sequence[str] | None = None
) -> tuple[int, Position | None]:
    """Promote a step's worth of due scheduled messages, or of those among `message_ids`.

    Return the number of deliveries, and where to continue; None at the end.
    """
    placed, last_at, last_id = await driver.fetchrow(_PROMOTE, now, STEP, *after, message_ids)
    return placed, None if last_at is None else (last_at, last_id)


async def cancel(driver: Driver, message_id: str, now: float) -> bool:
    """Delete a scheduled message that is not due yet, and its accepted id; return False if there is none."""
    return bool(await driver.fetch(_CANCEL, message_id, now))


async def scheduled(driver: Driver, message_id: str, now: float) -> bool:
    """Return whether `cancel` would succeed."""
    return bool(await driver.fetchval(_SCHEDULED, message_id, now))


async def forget_ids(driver: Driver, before: float, after: float = -math.inf) -> float | None:
    """Remove a step's worth of ids accepted between `after` and `before`; return where to continue.

    None means the end.
    """
    forgotten, last = await driver.fetchrow(_FORGET, before, FORGOTTEN_AT_ONCE, after)
    return last if forgotten == FORGOTTEN_AT_ONCE else None


async def forget_former_ids(driver: Driver, before: float, after: float = -math.inf) -> float | None:
    """Do the same for the ids that the previous release accepted."""
    forgotten, last = await driver.fetchrow(_FORGET_BEFORE, before, FORGOTTEN_AT_ONCE, after)
    return last if forgotten == FORGOTTEN_AT_ONCE else None


def parts_of(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Divide messages into statements of bounded number and bytes."""
    if len(messages) <= PUBLISHED_AT_ONCE and sum([len(it.body) for it in messages]) <= BYTES_AT_ONCE:
        yield messages
        return
    first = size = 0
    for nth, it in enumerate(messages):
        if nth > first and (nth - first >= PUBLISHED_AT_ONCE or size + len(it.body) > BYTES_AT_ONCE):
            yield messages[first:nth]
            first, size = nth, 0
        size += len(it.body)
    yield messages[first:]


def _columns(messages: Sequence[Message]) -> tuple[list[Any] | None, ...]:
    return (
        [it.id for it in messages],
        [it.event for it in messages],
        _sparse([it.ordering_key for it in messages]),
        _sparse([it.due_at for it in messages]),
        [it.published_at for it in messages],
        [it.dedupe for it in messages] if any(it.dedupe for it in messages) else None,
        [it.body for it in messages],
    )


def _sparse(column: list[Any]) -> list[Any] | None:
    """Return None for a column without values, which need not be sent."""
    return column if any(it is not None for it in column) else None
