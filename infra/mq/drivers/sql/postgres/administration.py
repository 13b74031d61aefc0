"""Commands of operators on PostgreSQL: retry and discard dead letters, unblock keys.

Each function is one step and must be called in a transaction.
"""

from collections.abc import Iterable, Sequence

from infra.db.postgresql_driver import Driver
from infra.mq.dead_ids import number_of
from infra.mq.drivers.sql.postgres import registry
from infra.mq.refusals import not_blocked

_LOCK_KEYS = "SELECT beneath_lock_keys_1($1)"
CLOSE = "SELECT beneath_close_1($1, $2, NULL, $3)"
_DEAD_LETTERS = """
SELECT l.id, s.id AS kept, s.ordered, coalesce(l.ordering_key, '') AS mailbox
FROM beneath_dead_letter AS l CROSS JOIN LATERAL (
    SELECT t.id, t.ordered FROM beneath_subscription AS t WHERE t.name = l.subscription
    UNION ALL
    SELECT t.id, t.ordered FROM beneath_alias AS a JOIN beneath_subscription AS t ON t.id = a.subscription
    WHERE a.name = l.subscription
) AS s
WHERE l.id = ANY ($1::bigint[])
    AND NOT EXISTS (SELECT 1 FROM beneath_retirement AS r WHERE r.subscription = s.id AND r.event IN ('', l.event))
ORDER BY l.id FOR UPDATE OF l
"""
_RETRY_DEAD = """
WITH letter AS (DELETE FROM beneath_dead_letter WHERE id = ANY ($1::bigint[]) RETURNING *)
INSERT INTO beneath_delivery
    (subscription, state, due_at, mailbox, published_at, message_id, event, ordering_key, body)
SELECT r.kept, CASE WHEN r.ordered = 1 THEN 4 ELSE 0 END, $5, CASE WHEN r.ordered = 1 THEN r.mailbox END,
    l.published_at, l.message_id, l.event, l.ordering_key, l.body
FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[]) WITH ORDINALITY
    AS r (id, kept, ordered, mailbox, place)
JOIN letter AS l ON l.id = r.id ORDER BY r.place
"""
_OPEN_MAILBOXES = """
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn)
SELECT m.kept, m.mailbox, 0, $3, nextval('beneath_number') FROM (
    SELECT DISTINCT kept, mailbox FROM unnest($1::bigint[], $2::text[]) AS r (kept, mailbox) ORDER BY 1, 2
) AS m ON CONFLICT DO NOTHING
"""
_SIZES = "SELECT id, octet_length(body) FROM beneath_dead_letter WHERE id = ANY ($1::bigint[])"
_DISCARD = "DELETE FROM beneath_dead_letter WHERE id = ANY ($1::bigint[]) RETURNING 1"
_BLOCKED = """
SELECT 1 FROM beneath_mailbox WHERE subscription = $1 AND ordering_key = $2 AND state = 3 FOR UPDATE
"""
_HEAD = """
SELECT id FROM beneath_delivery WHERE state = 4 AND subscription = $1 AND mailbox = $2 ORDER BY id LIMIT 1
"""
_ANEW = "UPDATE beneath_delivery SET failures = 0 WHERE id = $1"
TO_DEAD_LETTER = """
WITH gone AS (DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[]) RETURNING *)
INSERT INTO beneath_dead_letter (
    subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
)
SELECT s.name, g.message_id, g.event, g.ordering_key, coalesce(g.last_error, $3), coalesce(g.last_traceback, ''),
    g.failures, g.crashes, g.published_at, $2, g.body
FROM gone AS g JOIN beneath_subscription AS s ON s.id = g.subscription ORDER BY g.id
"""
STEP = 500
"""The maximum number of dead letters in a step."""

STEP_BYTES = 16 * 1024 * 1024
"""The maximum size of bodies that a step retries beyond the first, in bytes."""


async def steps_of(driver: Driver, dead_ids: Iterable[str]) -> list[list[int]]:
    """Divide dead letters into steps, in the given order; unknown ids are omitted."""
    numbers = [number for it in dict.fromkeys(dead_ids) if (number := number_of(it)) is not None]
    steps: list[list[int]] = []
    size = 0
    for first in range(0, len(numbers), STEP):
        sizes = dict(map(tuple, await driver.fetch(_SIZES, numbers[first : first + STEP])))
        for number in sorted(sizes):
            size += sizes[number]
            if not steps or len(steps[-1]) == STEP or size > STEP_BYTES:
                steps.append([])
                size = 0
            steps[-1].append(number)
    return steps


async def retry_dead(driver: Driver, numbers: Sequence[int], now: float) -> int:
    """Turn dead letters into deliveries; return their number. Dead letters of a retired subscription stay."""
    await driver.execute(registry.SHARE_REGISTRY)
    letters = await driver.fetch(_DEAD_LETTERS, numbers)
    if not letters:
        return 0
    ordered = [row for row in letters if row["ordered"]]
    await driver.execute(_LOCK_KEYS, [row["mailbox"] for row in ordered])
    columns = [[row[name] for row in letters] for name in ("id", "kept", "ordered", "mailbox")]
    await driver.execute(_RETRY_DEAD, *columns, now)
    await driver.execute(_OPEN_MAILBOXES, [row["kept"] for row in ordered], [row["mailbox"] for row in ordered], now)
    return len(letters)


async def discard_dead(driver: Driver, numbers: Sequence[int]) -> int:
    """Delete dead letters; return their number."""
    return len(await driver.fetch(_DISCARD, numbers))


async def unblock(driver: Driver, name: str, key: str, now: float, *, skip: bool) -> None:
    """Unblock a mailbox; with `skip` its head becomes a dead letter.

    Raises:
        SubscriptionNotFound: no subscription has that name.
        MailboxNotBlocked: that key is not blocked.
    """
    subscription = (await registry.get(driver, name)).id
    if not await driver.fetch(_BLOCKED, subscription, key):
        raise not_blocked(name, key)
    head: int | None = await driver.fetchval(_HEAD, subscription, key)
    if skip:
        await driver.execute(TO_DEAD_LETTER, [] if head is None else [head], now, "")
    else:
        await driver.execute(_ANEW, head)
    await driver.execute(CLOSE, [subscription], [key], now)
