"""Statistics and dead letters on PostgreSQL; all functions only read, and count in indexes."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from infra.db.postgresql_driver import Driver
from infra.mq.dead_ids import number_of
from infra.mq.drivers.sql.postgres import registry
from infra.mq.drivers.sql.retirement import interrupted
from infra.mq.drivers.sql.statistics import BacklogCounts, ordered_backlog, statistics_of, unordered_backlog
from infra.mq.drivers.sql.stored import DEAD_LETTERS, dead_letter_of
from infra.mq.refusals import no_dead_letter
from infra.mq.types import DeadLetter, SubscriptionStats

_SUBSCRIPTIONS = "SELECT id, name, ordered, paused FROM beneath_subscription ORDER BY name"
_EVENTS = "SELECT subscription, array_agg(event) FROM beneath_route GROUP BY subscription"
_NAMES = """
SELECT id, name FROM beneath_subscription UNION ALL SELECT subscription, name FROM beneath_alias
"""
_IN = "SELECT subscription, count(*), min(published_at) FROM beneath_delivery WHERE state = {} GROUP BY subscription"
_READY = """
SELECT subscription, count(*) FILTER (WHERE due_at <= $1), count(*) FILTER (WHERE due_at > $1), min(published_at)
FROM beneath_delivery WHERE state = 0 GROUP BY subscription
"""
_SCHEDULED = """
SELECT subscription, count(*) FILTER (WHERE due_at > $1), count(*) FILTER (WHERE due_at <= $1),
    min(published_at) FILTER (WHERE due_at <= $1)
FROM beneath_delivery WHERE state = 3 GROUP BY subscription
"""
_RETRYING_MAILBOXES = """
SELECT m.subscription, count(*) FROM beneath_mailbox AS m
WHERE m.state = 0 AND m.due_at > $1 AND EXISTS (
    SELECT 1 FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
) GROUP BY m.subscription
"""
_IN_MAILBOXES = """
SELECT m.subscription, count(*) FROM beneath_mailbox AS m
JOIN beneath_delivery AS d ON d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
WHERE m.state = {} GROUP BY m.subscription
"""
_OPEN_MAILBOXES = _IN_MAILBOXES.format("1 AND d.id <= m.last_id")
_BLOCKED_KEYS = """
SELECT m.subscription, m.ordering_key, coalesce((
    SELECT d.last_error FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
), '')
FROM beneath_mailbox AS m WHERE m.state = 3 ORDER BY m.ordering_key
"""
_RETIRING = """
SELECT s.name, t.event, t.backlog FROM beneath_retirement AS t JOIN beneath_subscription AS s ON s.id = t.subscription
ORDER BY s.name, t.event
"""
_DEAD = "SELECT subscription, count(*) FROM beneath_dead_letter GROUP BY subscription"

Counts = dict[int, tuple[Any, ...]]
"""Counts of one kind, by subscription number."""


async def stats(driver: Driver, live: Collection[frozenset[str]], now: float) -> list[SubscriptionStats]:
    """Return the counts of every subscription, in one snapshot; `live` holds the subscriptions of each live worker."""
    events = await _by_subscription(driver, _EVENTS)
    dead = dict(map(tuple, await driver.fetch(_DEAD)))
    names: defaultdict[int, set[str]] = defaultdict(set)
    for number, name in await driver.fetch(_NAMES):
        names[number].add(name)
    counted = await _Counted.read(driver, now)
    found: list[SubscriptionStats] = []
    for number, name, ordered, paused in await driver.fetch(_SUBSCRIPTIONS):
        found.append(
            statistics_of(
                name,
                ordered=bool(ordered),
                paused=bool(paused),
                events=events.get(number, ([],))[0],
                names=names[number],
                live=live,
                backlog=(counted.ordered if ordered else counted.unordered)(number),
                scheduled=counted.scheduled.get(number, (0, 0, None)),
                dead=dead.get(name, 0),
                blocked_keys=counted.blocked_keys.get(number, {}),
            )
        )
    return found


async def dead_letters(
    driver: Driver, subscription: str | None, event: str | None, limit: int, after: str | None
) -> list[DeadLetter]:
    """Return dead letters, oldest first."""
    start = 0 if after is None else number_of(after)
    if start is None:
        return []
    conditions = ["id > $1"]
    values: list[object] = [start]
    if subscription is not None:
        kept = (await registry.find(driver, [subscription])).get(subscription)
        values.append(subscription if kept is None else await registry.present_name(driver, kept.id))
        conditions.append(f"subscription = ${len(values)}")
    if event is not None:
        values.append(event)
        conditions.append(f"event = ${len(values)}")
    values.append(limit)
    query = f"{DEAD_LETTERS} WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ${len(values)}"
    return [dead_letter_of(row) for row in await driver.fetch(query, *values)]


async def dead_letter(driver: Driver, dead_id: str) -> DeadLetter:
    """Return one dead letter.

    Raises:
        DeadLetterNotFound: no dead letter has that id.
    """
    row = await driver.fetchrow(f"{DEAD_LETTERS} WHERE id = $1", number_of(dead_id))
    if row is None:
        raise no_dead_letter(dead_id)
    return dead_letter_of(row)


async def interrupted_retirements(driver: Driver) -> list[str]:
    """Return a line for each incomplete retirement."""
    return [interrupted(name, event, backlog) for name, event, backlog in await driver.fetch(_RETIRING)]


class _Counted:
    """The counts of all subscriptions, by subscription number."""

    def __init__(self) -> None:
        self.ready: Counts = {}
        self.claimed: Counts = {}
        self.parked: Counts = {}
        self.scheduled: Counts = {}
        self.placed: Counts = {}
        self.retrying_mailboxes: Counts = {}
        self.open_mailboxes: Counts = {}
        self.parked_mailboxes: Counts = {}
        self.blocked_mailboxes: Counts = {}
        self.blocked_keys: defaultdict[int, dict[str, str]] = defaultdict(dict)

    @classmethod
    async def read(cls, driver: Driver, now: float) -> "_Counted":
        """Read all counts."""
        counted = cls()
        counted.ready = await _by_subscription(driver, _READY, now)
        counted.claimed = await _by_subscription(driver, _IN.format(1))
        counted.parked = await _by_subscription(driver, _IN.format(2))
        counted.scheduled = await _by_subscription(driver, _SCHEDULED, now)
        counted.placed = await _by_subscription(driver, _IN.format(4))
        counted.retrying_mailboxes = await _by_subscription(driver, _RETRYING_MAILBOXES, now)
        counted.open_mailboxes = await _by_subscription(driver, _OPEN_MAILBOXES)
        counted.parked_mailboxes = await _by_subscription(driver, _IN_MAILBOXES.format(2))
        counted.blocked_mailboxes = await _by_subscription(driver, _IN_MAILBOXES.format(3))
        for number, key, error in await driver.fetch(_BLOCKED_KEYS):
            counted.blocked_keys[number][key] = error
        return counted

    def unordered(self, number: int) -> BacklogCounts:
        """Return the backlog of an unordered subscription."""
        return unordered_backlog(
            self.ready.get(number, (0, 0, None)),
            claimed=self.claimed.get(number, (0, None)),
            parked=self.parked.get(number, (0, None)),
        )

    def ordered(self, number: int) -> BacklogCounts:
        """Return the backlog of an ordered subscription."""
        return ordered_backlog(
            self.placed.get(number, (0, None)),
            retrying=self.retrying_mailboxes.get(number, (0,))[0],
            in_flight=self.open_mailboxes.get(number, (0,))[0],
            parked=self.parked_mailboxes.get(number, (0,))[0],
            blocked=self.blocked_mailboxes.get(number, (0,))[0],
        )


async def _by_subscription(driver: Driver, query: str, *values: object) -> Counts:
    return {row[0]: tuple(row)[1:] for row in await driver.fetch(query, *values)}
