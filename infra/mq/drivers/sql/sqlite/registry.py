"""Which subscriptions are kept, under which names, and for which events."""

import sqlite3
from collections.abc import Collection, Iterable
from json import dumps

from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.stored import StoredSubscription, refuse_conflict
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
    """Add what is missing.

    Raises:
        SubscriptionConflict: something contradicts what is kept.
    """
    changes = db.total_changes
    for wanted in subscriptions:
        _declare_one(db, wanted)
    db.executemany(_ADD_BROADCAST, [(event,) for event in broadcasts])
    if db.total_changes > changes:
        mark_changed(db, now)


def is_declared(db: sqlite3.Connection, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> bool:
    """Return whether `declare` would change nothing; writes nothing."""
    for wanted in subscriptions:
        kept = find(db, [wanted.name, *wanted.aliases])
        if set(kept) != {wanted.name, *wanted.aliases} or len({it.id for it in kept.values()}) != 1:
            return False
        mine = kept[wanted.name]
        if mine.ordered != wanted.ordered or not wanted.events <= set(events_of(db, mine.id)):
            return False
    return set(broadcasts) <= registry(db).broadcast


def mark_changed(db: sqlite3.Connection, now: float) -> None:
    """Note that the registry is another one from now on."""
    db.execute(_CHANGED, (now,))


def visible_at(db: sqlite3.Connection) -> float | None:
    """Return since when every process can read the present registry; None if that was not noted yet."""
    row = db.execute(_VISIBLE_AT).fetchone()
    return None if row is None else float(row[0])


def mark_visible(db: sqlite3.Connection, *, now: float) -> None:
    """Note that the present registry can be read: its COMMIT is over, however long it took."""
    db.execute(_VISIBLE, (now,))


def tables_exist(db: sqlite3.Connection) -> None:
    """Raise sqlite3.OperationalError if the database was not migrated."""
    db.execute(_VISIBLE_AT).fetchone()


def registry(db: sqlite3.Connection) -> Registry:
    """Return what is declared."""
    return Registry(
        routed=frozenset(event for (event,) in db.execute(_ROUTED)),
        broadcast=frozenset(event for (event,) in db.execute(_BROADCAST)),
    )


def find(db: sqlite3.Connection, names: Iterable[str]) -> dict[str, StoredSubscription]:
    """Return the subscriptions behind names and aliases; unknown ones are left out."""
    rows = db.execute(_KEPT, {"names": dumps(list(names))}).fetchall()
    return {name: StoredSubscription(number, bool(ordered)) for name, number, ordered in rows}


def get(db: sqlite3.Connection, name: str) -> StoredSubscription:
    """Return the subscription behind a name or alias.

    Raises:
        SubscriptionNotFound: there is none.
    """
    kept = find(db, [name]).get(name)
    if kept is None:
        raise no_subscription(name)
    return kept


def present_name(db: sqlite3.Connection, subscription: int) -> str:
    """Return the name under which a subscription is kept."""
    return str(db.execute(_PRESENT_NAME, (subscription,)).fetchone()[0])


def events_of(db: sqlite3.Connection, subscription: int) -> list[str]:
    """Return the events of a subscription."""
    return [event for (event,) in db.execute(_EVENTS, (subscription,))]


def set_paused(db: sqlite3.Connection, name: str, *, paused: bool) -> None:
    """Hand out nothing of a subscription, or again.

    Raises:
        SubscriptionNotFound: nothing is kept under that name.
    """
    subscription = get(db, name).id
    if not paused and "" in retiring_events(db, subscription):
        raise SubscriptionNotFound(f"{name} is being retired: complete that with `beneath bus retire`")
    db.execute(_PAUSE, (int(paused), subscription))


def retiring_events(db: sqlite3.Connection, subscription: int) -> set[str]:
    """Return which events of a subscription are being retired; the empty string stands for all of it."""
    return {event for (event,) in db.execute(_RETIRING, (subscription,))}


def _declare_one(db: sqlite3.Connection, wanted: Subscription) -> None:
    names = list(dict.fromkeys((wanted.name, *wanted.aliases)))
    kept = find(db, names)
    refuse_conflict(wanted, {name: kept[name] for name in names if name in kept})
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
