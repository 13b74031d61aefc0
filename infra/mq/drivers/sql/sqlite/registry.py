"""The registry on SQLite: subscriptions, their aliases and their events."""

import sqlite3
from collections.abc import Collection, Iterable
from json import dumps

from infra.mq.declaring import refuse_conflict
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.stored import SubscriptionRow
from infra.mq.errors import SubscriptionConflict, SubscriptionNotFound
from infra.mq.refusals import no_subscription
from infra.mq.types import Registry, Subscription

_KEPT = """
SELECT s.name, s.id, s.ordered FROM json_each(:names) AS w CROSS JOIN beneath_subscription AS s ON s.name = w.value
UNION ALL
SELECT a.name, s.id, s.ordered FROM json_each(:names) AS w
CROSS JOIN beneath_alias AS a ON a.name = w.value
CROSS JOIN beneath_subscription AS s ON s.id = a.subscription
"""
_PRESENT_NAME = "SELECT name FROM beneath_subscription WHERE id = ?"
_EVENTS = "SELECT event FROM beneath_route WHERE subscription = ? ORDER BY event"
_NAMES = """
SELECT name FROM beneath_subscription WHERE id = :id UNION ALL SELECT name FROM beneath_alias WHERE subscription = :id
"""
_ADD = "INSERT INTO beneath_subscription (id, name, ordered) VALUES (?, ?, ?)"
_RENAME = "UPDATE beneath_subscription SET name = ? WHERE id = ?"
_RENAME_DEAD = "UPDATE beneath_dead_letter SET subscription = ? WHERE subscription = ?"
_ADD_ALIAS = "INSERT INTO beneath_alias (name, subscription) VALUES (?, ?) ON CONFLICT DO NOTHING"
_ADD_ROUTE = "INSERT INTO beneath_route (event, subscription) VALUES (?, ?) ON CONFLICT DO NOTHING"
_ADD_BROADCAST = "INSERT INTO beneath_broadcast_event (event) VALUES (?) ON CONFLICT DO NOTHING"
_CHANGED = "UPDATE beneath_registry SET version = version + 1, changed_at = ? WHERE id = 1"
_ROUTED = "SELECT DISTINCT event FROM beneath_route"
_BROADCAST = "SELECT event FROM beneath_broadcast_event"
_PAUSE = "UPDATE beneath_subscription SET paused = ? WHERE id = ?"
_RETIRING = "SELECT event FROM beneath_retirement WHERE subscription = ?"
_VISIBLE = """
UPDATE beneath_registry SET visible_version = version, visible_at = ? WHERE id = 1 AND visible_version <> version
"""
_VISIBLE_AT = "SELECT visible_at FROM beneath_registry WHERE id = 1 AND visible_version = version"


def declare(
    db: sqlite3.Connection, subscriptions: Collection[Subscription], broadcasts: Collection[str], *, now: float
) -> None:
    """Add missing subscriptions, aliases, routes and broadcast events.

    Raises:
        SubscriptionConflict: a declaration contradicts a stored subscription, or one that is being retired.
    """
    changes = db.total_changes
    for wanted in subscriptions:
        _declare_one(db, wanted)
    db.executemany(_ADD_BROADCAST, [(event,) for event in broadcasts])
    if db.total_changes > changes:
        mark_changed(db, now)


def is_declared(db: sqlite3.Connection, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> bool:
    """Return whether all of these are stored already, so that `declare` would change nothing."""
    for wanted in subscriptions:
        kept = find(db, [wanted.name, *wanted.aliases])
        if set(kept) != {wanted.name, *wanted.aliases} or len({it.id for it in kept.values()}) != 1:
            return False
        mine = kept[wanted.name]
        if mine.ordered != wanted.ordered or not wanted.events <= set(events_of(db, mine.id)):
            return False
    return set(broadcasts) <= registry(db).broadcast


def mark_changed(db: sqlite3.Connection, now: float) -> None:
    """Record that the registry has changed at `now`."""
    db.execute(_CHANGED, (now,))


def visible_at(db: sqlite3.Connection) -> float | None:
    """Return the time since which every process can read the present registry; None if it is not recorded."""
    row = db.execute(_VISIBLE_AT).fetchone()
    return None if row is None else float(row[0])


def mark_visible(db: sqlite3.Connection, *, now: float) -> None:
    """Record that the present registry can be read, because its COMMIT has ended."""
    db.execute(_VISIBLE, (now,))


def tables_exist(db: sqlite3.Connection) -> None:
    """Raise sqlite3.OperationalError if the database was not migrated."""
    db.execute(_VISIBLE_AT).fetchone()


def registry(db: sqlite3.Connection) -> Registry:
    """Return the declared events."""
    return Registry(
        routed=frozenset(event for (event,) in db.execute(_ROUTED)),
        broadcast=frozenset(event for (event,) in db.execute(_BROADCAST)),
    )


def find(db: sqlite3.Connection, names: Iterable[str]) -> dict[str, SubscriptionRow]:
    """Return the subscriptions of names and aliases; unknown names are omitted."""
    rows = db.execute(_KEPT, {"names": dumps(list(names))}).fetchall()
    return {name: SubscriptionRow(number, bool(ordered)) for name, number, ordered in rows}


def get(db: sqlite3.Connection, name: str) -> SubscriptionRow:
    """Return the subscription of a name or alias.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    kept = find(db, [name]).get(name)
    if kept is None:
        raise no_subscription(name)
    return kept


def present_name(db: sqlite3.Connection, subscription: int) -> str:
    """Return the present name of a subscription."""
    return str(db.execute(_PRESENT_NAME, (subscription,)).fetchone()[0])


def names_of(db: sqlite3.Connection, subscription: int) -> set[str]:
    """Return the name and the aliases of a subscription."""
    return {name for (name,) in db.execute(_NAMES, {"id": subscription})}


def events_of(db: sqlite3.Connection, subscription: int) -> list[str]:
    """Return the events of a subscription."""
    return [event for (event,) in db.execute(_EVENTS, (subscription,))]


def set_paused(db: sqlite3.Connection, name: str, *, paused: bool) -> None:
    """Pause or resume a subscription.

    Raises:
        SubscriptionNotFound: no subscription has that name, or it is being retired.
    """
    subscription = get(db, name).id
    if not paused and "" in retiring_events(db, subscription):
        raise SubscriptionNotFound(f"{name} is being retired: complete that with `beneath bus retire`")
    db.execute(_PAUSE, (int(paused), subscription))


def retiring_events(db: sqlite3.Connection, subscription: int) -> set[str]:
    """Return the events of a subscription that are being retired; "" stands for the whole subscription."""
    return {event for (event,) in db.execute(_RETIRING, (subscription,))}


def _declare_one(db: sqlite3.Connection, wanted: Subscription) -> None:
    names = list(dict.fromkeys((wanted.name, *wanted.aliases)))
    kept = find(db, names)
    refuse_conflict(wanted, {name: (it.id, it.ordered) for name, it in kept.items()})
    if not kept:
        number = reserve(db, 1)
        db.execute(_ADD, (number, wanted.name, int(wanted.ordered)))
    else:
        number = next(iter(kept.values())).id
        if not retiring_events(db, number).isdisjoint({"", *wanted.events}):
            raise SubscriptionConflict(f"{wanted.name} is being retired: complete that with `beneath bus retire`")
        if wanted.name not in kept:
            _rename(db, number, wanted.name)
    present = present_name(db, number)
    db.executemany(_ADD_ALIAS, [(name, number) for name in names if name != present])
    db.executemany(_ADD_ROUTE, [(event, number) for event in sorted(wanted.events)])


def _rename(db: sqlite3.Connection, subscription: int, name: str) -> None:
    former = present_name(db, subscription)
    db.execute(_RENAME, (name, subscription))
    db.execute(_RENAME_DEAD, (name, former))
    db.execute(_ADD_ALIAS, (former, subscription))
