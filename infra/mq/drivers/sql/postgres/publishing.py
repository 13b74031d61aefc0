"""Messages on their way in: fan-out, delays, dedupe."""

from collections.abc import Sequence
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.types import Message

DONE, PROMOTE, ROUTES_WANTED = range(3)
"""What `beneath_publish_1` answers."""

PROMOTED_AT_ONCE = 200

_PUBLISH = "SELECT beneath_publish_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
_ROUTES = """
SELECT r.event, s.id, s.ordered = 1 FROM beneath_route AS r JOIN beneath_subscription AS s ON s.id = r.subscription
WHERE r.event = ANY ($1::text[])
"""
_PROMOTE = "SELECT beneath_promote_1($1, $2, $3)"
_CANCEL = """
WITH first AS MATERIALIZED (
    SELECT id FROM beneath_delivery WHERE state = 3 AND message_id = $1 AND due_at > $2 ORDER BY id FOR UPDATE
)
DELETE FROM beneath_delivery WHERE id IN (SELECT id FROM first) RETURNING 1
"""
_SCHEDULED = "SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 3 AND message_id = $1 AND due_at > $2)"
_FORGET = """
DELETE FROM beneath_dedupe WHERE id IN (
    SELECT id FROM beneath_dedupe WHERE at <= $1 ORDER BY at LIMIT 1000 FOR UPDATE SKIP LOCKED
)
"""

Routes = tuple[list[str], list[int], list[bool]]


async def publish(
    driver: Driver,
    messages: Sequence[Message],
    now: float,
    dedupe_window: float,
    routes: Routes | None = None,
    patience: float | None = None,
) -> int:
    """Store one delivery of every message for each subscription of its event; return what is left to do.

    With a `patience`, in seconds, it waits no longer for a lock; not for use in other people's transactions.
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


async def promote(driver: Driver, now: float, message_ids: Sequence[str] | None = None) -> None:
    """Let scheduled messages that are due take their places: some, or these."""
    await driver.fetchval(_PROMOTE, now, PROMOTED_AT_ONCE, message_ids)


async def cancel(driver: Driver, message_id: str, now: float) -> bool:
    """Delete a scheduled message that is not due yet; False if there is none."""
    return bool(await driver.fetch(_CANCEL, message_id, now))


async def scheduled(driver: Driver, message_id: str, now: float) -> bool:
    """Return whether `cancel` would find something."""
    return bool(await driver.fetchval(_SCHEDULED, message_id, now))


async def forget_ids(driver: Driver, before: float) -> None:
    """Remove some of the ids that were accepted before then."""
    await driver.execute(_FORGET, before)


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
    """Return None for a column without any value: it need not be sent."""
    return column if any(it is not None for it in column) else None
