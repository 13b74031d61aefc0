"""The registry on PostgreSQL: subscriptions, their aliases and their events."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from infra.db.postgresql_driver import Driver
from infra.mq.declaring import refuse_conflict
from infra.mq.drivers.sql.stored import SubscriptionRow
from infra.mq.errors import SubscriptionConflict
from infra.mq.refusals import no_subscription
from infra.mq.types import Registry, Subscription

_LOCK = "SELECT set_config('lock_timeout', '40ms', true), pg_advisory_xact_lock(1650812527, 0)"
_LOCK_TO_ADD = "SELECT pg_advisory_xact_lock_shared(1650812527, 0), pg_advisory_xact_lock(1650812527, 1)"
_PUBLISHERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid = 1650812527 AND objid = 0 AND mode = 'ShareLock' AND granted AND pid <> pg_backend_pid()
"""

SHARE_REGISTRY = "SELECT pg_advisory_xact_lock_shared(1650812527, 0)"

_KEPT = """
SELECT s.name, s.id, s.ordered FROM beneath_subscription AS s WHERE s.name = ANY ($1::text[])
UNION ALL
SELECT a.name, s.id, s.ordered FROM beneath_alias AS a JOIN beneath_subscription AS s ON s.id = a.subscription
WHERE a.name = ANY ($1::text[])
"""
_EVENTS = "SELECT event FROM beneath_route WHERE subscription = $1 ORDER BY event"
_PRESENT_NAME = "SELECT name FROM beneath_subscription WHERE id = $1"
_ADD = "INSERT INTO beneath_subscription (name, ordered) VALUES ($1, $2) RETURNING id"
_RENAME = "UPDATE beneath_subscription SET name = $1 WHERE id = $2"
_RENAME_DEAD = "UPDATE beneath_dead_letter SET subscription = $1 WHERE subscription = $2"
_ADD_ALIASES = """
INSERT INTO beneath_alias (name, subscription) SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING RETURNING 1
"""
_ADD_ROUTES = """
INSERT INTO beneath_route (event, subscription) SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING RETURNING 1
"""
_ADD_BROADCASTS = """
INSERT INTO beneath_broadcast_event (event) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING RETURNING 1
"""
_CHANGED = "UPDATE beneath_registry SET version = version + 1, changed_at = $1 WHERE id = 1"
_VERSION = "SELECT version FROM beneath_registry WHERE id = 1"
_VISIBLE = "UPDATE beneath_registry SET visible_version = $1, visible_at = $2 WHERE id = 1 AND visible_version < $1"
_NAMES_OF = """
SELECT name FROM beneath_subscription WHERE id = $1 UNION ALL SELECT name FROM beneath_alias WHERE subscription = $1
"""
_RETIRED = "SELECT event FROM beneath_retirement WHERE subscription = $1 AND (event = '' OR event = ANY ($2::text[]))"
_STATE = f"""
WITH kept AS MATERIALIZED ({_KEPT}), routes AS MATERIALIZED (
    SELECT event, subscription FROM beneath_route WHERE event = ANY ($2::text[])
)
SELECT r.version, r.visible_version, r.visible_at,
    ARRAY(SELECT name FROM kept ORDER BY name) AS names, ARRAY(SELECT id FROM kept ORDER BY name) AS numbers,
    ARRAY(SELECT ordered FROM kept ORDER BY name) AS ordered,
    ARRAY(SELECT event FROM routes ORDER BY event, subscription) AS route_events,
    ARRAY(SELECT subscription FROM routes ORDER BY event, subscription) AS route_subscriptions,
    ARRAY(SELECT event FROM beneath_broadcast_event WHERE event = ANY ($3::text[])) AS broadcasts,
    EXISTS (
        SELECT 1 FROM beneath_retirement AS t
        WHERE t.subscription IN (SELECT id FROM kept) AND (t.event = '' OR t.event = ANY ($2::text[]))
    ) AS retiring
FROM beneath_registry AS r WHERE r.id = 1
"""  # noqa: S608  # constants only
_ROUTED = "SELECT DISTINCT event FROM beneath_route"
_BROADCAST = "SELECT event FROM beneath_broadcast_event"
_PAUSE = "UPDATE beneath_subscription SET paused = $1 WHERE id = $2"


@dataclass(frozen=True, slots=True)
class Declared:
    """The state of a declaration in the registry."""

    complete: bool
    """Whether all of it is stored."""

    version: int
    """The version of the registry, which grows with each change."""

    visible_at: float | None
    """The queue's time since which that version can be read; None if it is not recorded."""


async def lock(driver: Driver) -> None:
    """Lock the registry: wait briefly for all publishes that use its present version, and make new ones wait."""
    await driver.execute(_LOCK)


async def declare(
    driver: Driver, subscriptions: Collection[Subscription], broadcasts: Collection[str], now: float
) -> None:
    """Add missing subscriptions, aliases, routes and broadcast events; to be called in a transaction.

    Raises:
        SubscriptionConflict: a declaration contradicts a stored subscription, or one that is being retired.
    """
    # Publishers need not wait here: after COMMIT the caller waits for those that used the earlier registry.
    await driver.execute(_LOCK_TO_ADD)
    changed = False
    for wanted in subscriptions:
        changed = await _declare_one(driver, wanted) or changed
    if bool(await driver.fetch(_ADD_BROADCASTS, sorted(broadcasts))) or changed:
        await mark_changed(driver, now)


async def publishers(driver: Driver) -> set[str]:
    """Return the open transactions that may have used an earlier version of the registry."""
    return {row[0] for row in await driver.fetch(_PUBLISHERS)}


async def declared(driver: Driver, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> Declared:
    """Return, with one read, whether all of these are stored, and since when publishers can read them."""
    names = {name for it in subscriptions for name in (it.name, *it.aliases)}
    events = {event for it in subscriptions for event in it.events}
    row = await driver.fetchrow(_STATE, list(names), list(events), list(broadcasts))
    columns = zip(row["names"], row["numbers"], row["ordered"], strict=True)
    kept = {name: SubscriptionRow(number, bool(ordered)) for name, number, ordered in columns}
    routes = set(zip(row["route_events"], row["route_subscriptions"], strict=True))
    complete = not row["retiring"] and set(broadcasts) <= set(row["broadcasts"])
    for wanted in subscriptions:
        mine = [kept.get(name) for name in (wanted.name, *wanted.aliases)]
        first = mine[0]
        complete = (
            complete
            and first is not None
            and first.ordered == wanted.ordered
            and all(it == first for it in mine)
            and all((event, first.id) in routes for event in wanted.events)
        )
    visible_at = row["visible_at"] if row["visible_version"] >= row["version"] else None
    return Declared(complete, row["version"], visible_at)


async def version(driver: Driver) -> int:
    """Return the version of the registry."""
    number: int = await driver.fetchval(_VERSION)
    return number


async def mark_visible(driver: Driver, version: int, now: float) -> None:
    """Record that `version` of the registry can be read, because its COMMIT has ended."""
    await driver.execute(_VISIBLE, version, now)


async def mark_changed(driver: Driver, now: float) -> None:
    """Record that the registry has changed; to be called last before COMMIT."""
    await driver.execute(_CHANGED, now)


async def registry(driver: Driver) -> Registry:
    """Return the declared events."""
    return Registry(
        routed=frozenset(row[0] for row in await driver.fetch(_ROUTED)),
        broadcast=frozenset(row[0] for row in await driver.fetch(_BROADCAST)),
    )


async def find(driver: Driver, names: Iterable[str]) -> dict[str, SubscriptionRow]:
    """Return the subscriptions of names and aliases; unknown names are omitted."""
    return {row[0]: SubscriptionRow(row[1], bool(row[2])) for row in await driver.fetch(_KEPT, list(names))}


async def names_of(driver: Driver, name: str) -> list[str]:
    """Return all names of the subscription of a name or alias.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    return [row[0] for row in await driver.fetch(_NAMES_OF, (await get(driver, name)).id)]


async def get(driver: Driver, name: str) -> SubscriptionRow:
    """Return the subscription of a name or alias.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    kept = (await find(driver, [name])).get(name)
    if kept is None:
        raise no_subscription(name)
    return kept


async def present_name(driver: Driver, subscription: int) -> str:
    """Return the present name of a subscription."""
    return str(await driver.fetchval(_PRESENT_NAME, subscription))


async def events_of(driver: Driver, subscription: int) -> list[str]:
    """Return the events of a subscription."""
    return [row[0] for row in await driver.fetch(_EVENTS, subscription)]


async def set_paused(driver: Driver, name: str, *, paused: bool) -> None:
    """Pause or resume a subscription.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    await driver.execute(_PAUSE, int(paused), (await get(driver, name)).id)


async def _declare_one(driver: Driver, wanted: Subscription) -> bool:
    names = list(dict.fromkeys((wanted.name, *wanted.aliases)))
    kept = await find(driver, names)
    refuse_conflict(wanted, {name: (it.id, it.ordered) for name, it in kept.items()})
    changed = wanted.name not in kept
    if not kept:
        number: int = await driver.fetchval(_ADD, wanted.name, int(wanted.ordered))
    else:
        number = next(iter(kept.values())).id
        if wanted.name not in kept:
            await _rename(driver, number, wanted.name)
    if await driver.fetch(_RETIRED, number, sorted(wanted.events)):
        raise SubscriptionConflict(
            f"{wanted.name}, or one of its events, is being retired: complete that with `beneath bus retire`"
        )
    present = await present_name(driver, number)
    added = await driver.fetch(_ADD_ALIASES, [name for name in names if name != present], number)
    added += await driver.fetch(_ADD_ROUTES, sorted(wanted.events), number)
    return changed or bool(added)


async def _rename(driver: Driver, subscription: int, name: str) -> None:
    former = await present_name(driver, subscription)
    await driver.execute(_RENAME, name, subscription)
    await driver.execute(_RENAME_DEAD, name, former)
    await driver.fetch(_ADD_ALIASES, [former], subscription)
