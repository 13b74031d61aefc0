"""Which subscriptions are kept, under which names, and for which events."""

from collections.abc import Collection, Iterable

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.kept import Kept, refuse_conflict
from infra.mq.errors import SubscriptionNotFound
from infra.mq.types import Registry, Subscription

_LOCK = "SELECT set_config('lock_timeout', '200ms', true), pg_advisory_xact_lock(1650812527, 0)"

SHARE_REGISTRY = "SELECT pg_advisory_xact_lock_shared(1650812527, 0)"

_KEPT = """
SELECT s.name, s.id, s.ordered FROM beneath_subscription AS s WHERE s.name = ANY ($1::text[])
UNION ALL
SELECT a.name, s.id, s.ordered FROM beneath_alias AS a JOIN beneath_subscription AS s ON s.id = a.subscription
WHERE a.name = ANY ($1::text[])
"""
_EVENTS = "SELECT event FROM beneath_route WHERE subscription = $1 ORDER BY event"
_DECLARED = "SELECT event, subscription FROM beneath_route WHERE event = ANY ($1::text[])"
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
_CHANGED_AT = "SELECT changed_at FROM beneath_registry WHERE id = 1"
_ROUTED = "SELECT DISTINCT event FROM beneath_route"
_BROADCAST = "SELECT event FROM beneath_broadcast_event"
_PAUSE = "UPDATE beneath_subscription SET paused = $1 WHERE id = $2"


async def lock(driver: Driver) -> None:
    """Wait a moment until every publish that went by the registry so far has committed, and keep others waiting."""
    await driver.execute(_LOCK)


async def declare(driver: Driver, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> bool:
    """Add what is missing, in a transaction; return whether anything was.

    Raises:
        SubscriptionConflict: something contradicts what is kept.
    """
    await lock(driver)
    changed = False
    for wanted in subscriptions:
        changed = await _declare_one(driver, wanted) or changed
    return bool(await driver.fetch(_ADD_BROADCASTS, sorted(broadcasts))) or changed


async def is_declared(driver: Driver, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> bool:
    """Return whether `declare` would change nothing."""
    kept = await find(driver, {name for it in subscriptions for name in (it.name, *it.aliases)})
    events = sorted({event for it in subscriptions for event in it.events})
    routes = {(row[0], row[1]) for row in await driver.fetch(_DECLARED, events)}
    for wanted in subscriptions:
        mine = [kept.get(name) for name in (wanted.name, *wanted.aliases)]
        first = mine[0]
        if first is None or first.ordered != wanted.ordered or any(it != first for it in mine):
            return False
        if not all((event, first.id) in routes for event in wanted.events):
            return False
    return not broadcasts or set(broadcasts) <= (await registry(driver)).broadcast


async def changed_at(driver: Driver) -> float:
    """Return when the registry changed for the last time."""
    when: float = await driver.fetchval(_CHANGED_AT)
    return when


async def mark_changed(driver: Driver, now: float) -> None:
    """Note that the registry is another one from now on; the last thing before COMMIT."""
    await driver.execute(_CHANGED, now)


async def registry(driver: Driver) -> Registry:
    """Return what is declared."""
    return Registry(
        routed=frozenset(row[0] for row in await driver.fetch(_ROUTED)),
        broadcast=frozenset(row[0] for row in await driver.fetch(_BROADCAST)),
    )


async def find(driver: Driver, names: Iterable[str]) -> dict[str, Kept]:
    """Return the subscriptions behind names and aliases; unknown ones are left out."""
    return {row[0]: Kept(row[1], bool(row[2])) for row in await driver.fetch(_KEPT, list(names))}


async def get(driver: Driver, name: str) -> Kept:
    """Return the subscription behind a name or alias.

    Raises:
        SubscriptionNotFound: there is none.
    """
    kept = (await find(driver, [name])).get(name)
    if kept is None:
        raise SubscriptionNotFound(f"no subscription is called {name}")
    return kept


async def present_name(driver: Driver, subscription: int) -> str:
    """Return the name under which a subscription is kept."""
    return str(await driver.fetchval(_PRESENT_NAME, subscription))


async def events_of(driver: Driver, subscription: int) -> list[str]:
    """Return the events of a subscription."""
    return [row[0] for row in await driver.fetch(_EVENTS, subscription)]


async def set_paused(driver: Driver, name: str, *, paused: bool) -> None:
    """Hand out nothing of a subscription, or again.

    Raises:
        SubscriptionNotFound: nothing is kept under that name.
    """
    await driver.execute(_PAUSE, int(paused), (await get(driver, name)).id)


async def _declare_one(driver: Driver, wanted: Subscription) -> bool:
    names = list(dict.fromkeys((wanted.name, *wanted.aliases)))
    kept = await find(driver, names)
    refuse_conflict(wanted, {name: kept[name] for name in names if name in kept})
    changed = wanted.name not in kept
    if not kept:
        number: int = await driver.fetchval(_ADD, wanted.name, int(wanted.ordered))
    else:
        number = next(iter(kept.values())).id
        if wanted.name not in kept:
            await _rename(driver, number, wanted.name)
    present = await present_name(driver, number)
    added = await driver.fetch(_ADD_ALIASES, [name for name in names if name != present], number)
    added += await driver.fetch(_ADD_ROUTES, sorted(wanted.events), number)
    return changed or bool(added)


async def _rename(driver: Driver, subscription: int, name: str) -> None:
    former = await present_name(driver, subscription)
    await driver.execute(_RENAME, name, subscription)
    await driver.execute(_RENAME_DEAD, name, former)
    await driver.fetch(_ADD_ALIASES, [former], subscription)
