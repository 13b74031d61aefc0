"""What operators do: dead letters, blocked keys, and the end of a subscription. Everything here needs a transaction."""

from collections.abc import Iterable
from typing import Any, Literal

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.kept import number_of
from infra.mq.drivers.sql.postgres import inspection, membership, registry
from infra.mq.errors import ListenerInUse, MailboxNotBlocked, SubscriptionNotFound

Backlog = Literal["refuse", "discard", "dead"]

_LOCK_KEYS = "SELECT beneath_lock_keys_1($1)"
_CLOSE = "SELECT beneath_close_1($1, $2, NULL, $3)"
_LETTERS = """
SELECT l.id, s.id AS kept, s.ordered, coalesce(l.ordering_key, '') AS mailbox
FROM beneath_dead_letter AS l CROSS JOIN LATERAL (
    SELECT t.id, t.ordered FROM beneath_subscription AS t WHERE t.name = l.subscription
    UNION ALL
    SELECT t.id, t.ordered FROM beneath_alias AS a JOIN beneath_subscription AS t ON t.id = a.subscription
    WHERE a.name = l.subscription
) AS s
WHERE l.id = ANY ($1::bigint[]) ORDER BY l.id FOR UPDATE OF l
"""
_REVIVE = """
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
_DISCARD = "DELETE FROM beneath_dead_letter WHERE id = ANY ($1::bigint[]) RETURNING 1"
_BLOCKED = """
SELECT 1 FROM beneath_mailbox WHERE subscription = $1 AND ordering_key = $2 AND state = 3 FOR UPDATE
"""
_HEAD = """
SELECT id FROM beneath_delivery WHERE state = 4 AND subscription = $1 AND mailbox = $2 ORDER BY id LIMIT 1
"""
_ANEW = "UPDATE beneath_delivery SET failures = 0 WHERE id = $1"
_BURY = """
WITH gone AS (DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[]) RETURNING *)
INSERT INTO beneath_dead_letter (
    subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
)
SELECT s.name, g.message_id, g.event, g.ordering_key, coalesce(g.last_error, $3), coalesce(g.last_traceback, ''),
    g.failures, g.crashes, g.published_at, $2, g.body
FROM gone AS g JOIN beneath_subscription AS s ON s.id = g.subscription ORDER BY g.id
"""
_DELETE = "DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[])"
_MAILBOXES = """
SELECT m.ordering_key, m.state, (
    SELECT d.id FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
) AS head
FROM beneath_mailbox AS m WHERE m.subscription = $1 ORDER BY m.ordering_key
"""
_LOCK_MAILBOXES = """
SELECT 1 FROM beneath_mailbox WHERE subscription = $1 ORDER BY subscription, ordering_key FOR UPDATE
"""
_BACKLOG = """
SELECT id FROM beneath_delivery WHERE subscription = $1 AND state = {} AND ($2::text IS NULL OR event = $2)
ORDER BY id FOR UPDATE
"""
_STATES = range(5)
_DROP_ROUTE = "DELETE FROM beneath_route WHERE subscription = $1 AND event = $2"
_DROP_ALL = (
    "DELETE FROM beneath_mailbox WHERE subscription = $1",
    "DELETE FROM beneath_route WHERE subscription = $1",
    "DELETE FROM beneath_alias WHERE subscription = $1",
    "DELETE FROM beneath_subscription WHERE id = $1",
)
_CLAIMED = 1


async def retry_dead(driver: Driver, dead_ids: Iterable[str], now: float) -> int:
    """Turn dead letters into deliveries again; return how many. Those whose subscription is gone stay."""
    await driver.execute(registry.SHARE_REGISTRY)
    letters = await driver.fetch(_LETTERS, _numbers(dead_ids))
    if not letters:
        return 0
    ordered = [row for row in letters if row["ordered"]]
    await driver.execute(_LOCK_KEYS, [row["mailbox"] for row in ordered])
    columns = [[row[name] for row in letters] for name in ("id", "kept", "ordered", "mailbox")]
    await driver.execute(_REVIVE, *columns, now)
    await driver.execute(_OPEN_MAILBOXES, [row["kept"] for row in ordered], [row["mailbox"] for row in ordered], now)
    return len(letters)


async def discard_dead(driver: Driver, dead_ids: Iterable[str]) -> int:
    """Delete dead letters; return how many."""
    return len(await driver.fetch(_DISCARD, _numbers(dead_ids)))


async def unblock(driver: Driver, name: str, key: str, now: float, *, skip: bool) -> None:
    """Let a blocked mailbox go on.

    Raises:
        SubscriptionNotFound: nothing is kept under that name.
        MailboxNotBlocked: that key is not blocked.
    """
    subscription = (await registry.get(driver, name)).id
    if not await driver.fetch(_BLOCKED, subscription, key):
        raise MailboxNotBlocked(f"{name}: the key {key!r} is not blocked")
    head: int | None = await driver.fetchval(_HEAD, subscription, key)
    if skip:
        await driver.execute(_BURY, [] if head is None else [head], now, "")
    else:
        await driver.execute(_ANEW, head)
    await driver.execute(_CLOSE, [subscription], [key], now)


async def retire(driver: Driver, name: str, event: str | None, backlog: Backlog, now: float) -> int:
    """Remove a subscription, or one event of it; return how many deliveries went with it.

    Raises:
        SubscriptionNotFound: nothing is kept under that name, or it has no such event.
        ListenerInUse: a live worker has it, or a backlog exists and is to be refused.
    """
    await registry.lock(driver)
    subscription = (await registry.get(driver, name)).id
    if event is None:
        await _refuse_if_used(driver, name, subscription)
    elif event not in await registry.events_of(driver, subscription):
        raise SubscriptionNotFound(f"{name} has no event {event}")
    await driver.execute(_LOCK_MAILBOXES, subscription)
    ids = [row[0] for state in _STATES for row in await driver.fetch(_BACKLOG.format(state), subscription, event)]
    if ids and backlog == "refuse":
        raise ListenerInUse(f"{name} still has {len(ids)} deliveries: discard or bury them, or wait")
    before = await _mailboxes_of(driver, subscription)
    if backlog == "dead":
        await driver.execute(_BURY, ids, now, "its subscription was retired")
    else:
        await driver.execute(_DELETE, ids)
    if event is None:
        for statement in _DROP_ALL:
            await driver.execute(statement, subscription)
    else:
        await driver.execute(_DROP_ROUTE, subscription, event)
        await _reopen(driver, subscription, before, now)
    await registry.mark_changed(driver, now)
    return len(ids)


async def _refuse_if_used(driver: Driver, name: str, subscription: int) -> None:
    names = await inspection.names_of(driver, subscription)
    users = [worker for worker, theirs in await membership.live(driver) if not names.isdisjoint(theirs)]
    if users:
        raise ListenerInUse(f"{name} is in use by worker {users[0]}: stop it, or remove the listener first")


async def _reopen(driver: Driver, subscription: int, before: dict[str, Any], now: float) -> None:
    """Let mailboxes go on whose head is gone; those that somebody works on are closed by their owner."""
    after = await _mailboxes_of(driver, subscription)
    keys = [key for key, row in after.items() if row["state"] != _CLAIMED and row["head"] != before[key]["head"]]
    if keys:
        await driver.execute(_CLOSE, [subscription] * len(keys), keys, now)


async def _mailboxes_of(driver: Driver, subscription: int) -> dict[str, Any]:
    return {row["ordering_key"]: row for row in await driver.fetch(_MAILBOXES, subscription)}


def _numbers(dead_ids: Iterable[str]) -> list[int]:
    numbers = (number_of(it) for it in dict.fromkeys(dead_ids))
    return [it for it in numbers if it is not None]
