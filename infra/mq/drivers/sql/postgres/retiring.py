"""Retiring a subscription, or one of its events, in steps.

The first step stores the retirement in `beneath_retirement`: from then on no delivery is added. Further steps remove
the pending deliveries, and the last one the subscription or event. The next call completes an interrupted retirement.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres import membership, registry
from infra.mq.drivers.sql.postgres.administration import CLOSE, TO_DEAD_LETTER
from infra.mq.drivers.sql.retirement import COUNTED, refuse_if_used
from infra.mq.refusals import RETIRED, has_backlog, no_event
from infra.mq.types import BacklogPolicy

STEP = 500
"""The number of deliveries that a step reads."""

STEP_BYTES = 16 * 1024 * 1024
"""The maximum size of bodies that a step moves to the dead letters beyond the first, in bytes."""

WHOLE = ""
"""The event name that stands for the whole subscription."""

# xmin identifies the retirement: a later row for the same event belongs to another one.
_FIND = "SELECT backlog, xmin::text FROM beneath_retirement WHERE subscription = $1 AND event = $2"
_BEGIN = "INSERT INTO beneath_retirement (subscription, event, backlog) VALUES ($1, $2, $3) RETURNING xmin::text"
_HOLD = """
SELECT 1 FROM beneath_retirement WHERE subscription = $1 AND event = $2 AND xmin::text = $3 FOR KEY SHARE
"""
_END = "DELETE FROM beneath_retirement WHERE subscription = $1 AND ($2 = '' OR event = $2)"
_STOP = (
    "UPDATE beneath_subscription SET paused = 1 WHERE id = $1",
    "DELETE FROM beneath_route WHERE subscription = $1",
)
_DROP_ROUTE = "DELETE FROM beneath_route WHERE subscription = $1 AND event = $2"
_BACKLOG = " UNION ALL ".join(
    f"(SELECT 1 FROM beneath_delivery WHERE state = {state} AND subscription = $1 AND ($2 = '' OR event = $2) LIMIT $3)"  # noqa: S608  # a number
    for state in range(5)
)
_COUNT = f"SELECT count(*) FROM ({_BACKLOG}) AS backlog"  # noqa: S608  # constants only
_LAST_NUMBER = "SELECT last_value FROM beneath_number"
# OFFSET 0 forces the index by number: any other index would read all stored deliveries.
_ARRIVED = """
SELECT EXISTS (
    SELECT 1 FROM (SELECT subscription, event FROM beneath_delivery WHERE id > $3 ORDER BY id OFFSET 0) AS d
    WHERE d.subscription = $1 AND ($2 = '' OR d.event = $2)
)
"""
# Each page continues in the index of its state where the previous page ended; there are few claimed deliveries.
_PAGES = {
    1: "SELECT {columns} FROM beneath_delivery WHERE state = 1 AND subscription = $1 AND id > $3 ORDER BY id LIMIT $2",
    3: "SELECT {columns} FROM beneath_delivery WHERE state = 3 AND subscription = $1 AND id > $3 ORDER BY id LIMIT $2",
    0: """
        SELECT {columns} FROM beneath_delivery WHERE state = 0 AND subscription = $1 AND (due_at, id) > ($4, $3)
        ORDER BY due_at, id LIMIT $2
    """,
    2: """
        SELECT {columns} FROM beneath_delivery
        WHERE state = 2 AND subscription = $1 AND (coalesce(needs, event), id) > ($4, $3)
        ORDER BY coalesce(needs, event), id LIMIT $2
    """,
    4: """
        SELECT {columns} FROM beneath_delivery WHERE state = 4 AND subscription = $1 AND (mailbox, id) > ($4, $3)
        ORDER BY mailbox, id LIMIT $2
    """,
}
_COLUMNS = "id, due_at, coalesce(mailbox, needs, event) AS text, event, mailbox, octet_length(body) AS size"
_LOCK_MAILBOXES = """
SELECT m.ordering_key, m.state, (
    SELECT d.id FROM beneath_delivery AS d
    WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
) AS head
FROM beneath_mailbox AS m WHERE m.subscription = $1 AND m.ordering_key = ANY ($2::text[])
ORDER BY m.subscription, m.ordering_key FOR UPDATE
"""
_LOCK = "SELECT id FROM beneath_delivery WHERE id = ANY ($1::bigint[]) FOR UPDATE SKIP LOCKED"
_DELETE = "DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[])"
_DROP_MAILBOXES = """
DELETE FROM beneath_mailbox WHERE subscription = $1 AND ordering_key = ANY (ARRAY(
    SELECT ordering_key FROM beneath_mailbox WHERE subscription = $1 LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""
_DROP_ALL = (
    "DELETE FROM beneath_mailbox WHERE subscription = $1",
    "DELETE FROM beneath_route WHERE subscription = $1",
    "DELETE FROM beneath_alias WHERE subscription = $1",
    "DELETE FROM beneath_subscription WHERE id = $1",
)
_CLAIMED, _IN_MAILBOX = 1, 4
"""The state of a claimed mailbox, and of a delivery in a mailbox."""


class Found(NamedTuple):
    """A counted backlog: its size, up to `COUNTED`, and the last delivery number that it covers."""

    number: int
    since: int


@dataclass(slots=True)
class Retirement:
    """A retirement in progress, with the position of its present pass over all deliveries."""

    subscription: int
    event: str
    backlog: str
    note: str
    """The transaction id of its row in `beneath_retirement`, which identifies this retirement."""

    states: list[int] = field(default_factory=lambda: list(_PAGES))
    after: tuple[int, float, str] = (0, float("-inf"), "")
    found: int = 0
    """The number of deliveries found in this pass, removed or not."""


async def last_number(driver: Driver) -> int:
    """Return the number of the latest delivery."""
    number: int = await driver.fetchval(_LAST_NUMBER)
    return number


async def count_backlog(driver: Driver, name: str, event: str | None) -> int:
    """Count pending deliveries up to `COUNTED`; only reads, and may take long.

    Raises:
        SubscriptionNotFound: no subscription has that name.
    """
    subscription = (await registry.get(driver, name)).id
    count: int = await driver.fetchval(_COUNT, subscription, WHOLE if event is None else event, COUNTED)
    return min(count, COUNTED)


async def begin(
    driver: Driver, name: str, event: str | None, backlog: BacklogPolicy, found: Found | None, now: float, lease: float
) -> Retirement:
    """Store the retirement of a subscription or of one event, or return the one that was begun earlier.

    With `found`, the counted backlog, refuse a backlog.

    Raises:
        SubscriptionNotFound: no subscription has that name, or it does not have that event.
        ListenerInUse: a live worker has the listener, or a backlog exists and `found` is given.
    """
    await registry.lock(driver)
    subscription = (await registry.get(driver, name)).id
    what = WHOLE if event is None else event
    begun = await driver.fetchrow(_FIND, subscription, what)
    if begun is not None:
        return Retirement(subscription, what, *begun)
    if event is None:
        refuse_if_used(name, await registry.names_of(driver, name), await membership.live(driver, lease))
    elif event not in await registry.events_of(driver, subscription):
        raise no_event(name, event)
    if found is not None:
        await _refuse_backlog(driver, name, subscription, what, found)
    note: str = await driver.fetchval(_BEGIN, subscription, what, "discard" if backlog == "refuse" else backlog)
    if event is None:
        for statement in _STOP:
            await driver.execute(statement, subscription)
    else:
        await driver.execute(_DROP_ROUTE, subscription, event)
    await registry.mark_changed(driver, now)
    return Retirement(subscription, what, backlog, note)


async def step(driver: Driver, retirement: Retirement, now: float) -> tuple[int, bool]:
    """Remove the retired deliveries of the next page; return their number, and whether to continue.

    Deliveries locked by other transactions are left for the next pass; the last pass finds none. If another call has
    completed the retirement, later deliveries are not touched.
    """
    if not await _hold(driver, retirement):
        return 0, False
    if not retirement.states:
        more = retirement.found > 0
        retirement.states, retirement.found = list(_PAGES), 0
        return 0, more
    state = retirement.states[0]
    number, due_at, text = retirement.after
    columns: dict[int, list[object]] = {0: [due_at], 2: [text], _IN_MAILBOX: [text]}
    second = columns.get(state, [])
    query = _PAGES[state].format(columns=_COLUMNS)
    rows = _within_bytes(await driver.fetch(query, retirement.subscription, STEP, number, *second))
    if not rows:
        retirement.states.pop(0)
        retirement.after = (0, float("-inf"), "")
        return 0, True
    retirement.after = (rows[-1]["id"], rows[-1]["due_at"], rows[-1]["text"])
    going = [row for row in rows if retirement.event in {WHOLE, row["event"]}]
    retirement.found += len(going)
    keys = sorted({row["mailbox"] for row in going if state == _IN_MAILBOX})
    mailboxes = await driver.fetch(_LOCK_MAILBOXES, retirement.subscription, keys) if keys else []
    ids = [row[0] for row in await driver.fetch(_LOCK, [row["id"] for row in going])]
    if retirement.backlog == "dead":
        await driver.execute(TO_DEAD_LETTER, ids, now, RETIRED)
    else:
        await driver.execute(_DELETE, ids)
    # Mailboxes whose head was removed become due; claimed ones are closed by their worker.
    reopened = [row["ordering_key"] for row in mailboxes if row["state"] != _CLAIMED and row["head"] in set(ids)]
    if reopened:
        await driver.execute(CLOSE, [retirement.subscription] * len(reopened), reopened, now)
    return len(ids), True


async def drop_mailboxes(driver: Driver, retirement: Retirement) -> tuple[int, bool]:
    """Remove some mailboxes of a retired subscription; return 0, and whether to continue."""
    if retirement.event != WHOLE:
        return 0, False
    return 0, await driver.execute(_DROP_MAILBOXES, retirement.subscription, STEP) == f"DELETE {STEP}"


async def end(driver: Driver, retirement: Retirement, now: float) -> None:
    """Remove the subscription or event and the retirement, unless another call has done so."""
    await registry.lock(driver)
    if not await _hold(driver, retirement):
        return
    await driver.execute(_END, retirement.subscription, retirement.event)
    if retirement.event == WHOLE:
        for statement in _DROP_ALL:
            await driver.execute(statement, retirement.subscription)
    await registry.mark_changed(driver, now)


async def _hold(driver: Driver, retirement: Retirement) -> bool:
    """Lock a retirement so that it cannot end during this transaction; return False if it has ended."""
    return bool(await driver.fetch(_HOLD, retirement.subscription, retirement.event, retirement.note))


def _within_bytes(rows: list[Any]) -> list[Any]:
    size = 0
    for nth, row in enumerate(rows):
        size += row["size"] if nth else 0
        if size > STEP_BYTES:
            return rows[:nth]
    return rows


async def _refuse_backlog(driver: Driver, name: str, subscription: int, event: str, found: Found) -> None:
    count = found.number or int(await driver.fetchval(_ARRIVED, subscription, event, found.since))
    if count:
        raise has_backlog(name, count, at_least=count >= COUNTED)
