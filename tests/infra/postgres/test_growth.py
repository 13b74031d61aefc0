"""The cost of each operation on PostgreSQL: equal rows, and nearly equal pages, at 1,000 and 100,000 items."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec
import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.db.postgresql_driver import Driver
from infra.mq import Claim, ClaimedDelivery, Outcome, Settlement
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import (
    administration,
    broadcasting,
    claiming,
    membership,
    publishing,
    registry,
    retiring,
    settling,
)
from tests.infra.mq.acting import message, subscription
from tests.infra.postgres.queues import MAIL, WORK, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

FEW, MANY = 1_000, 100_000
NOW = 1_000_000_000.0
LATER = 4_000_000_000.0

DELIVERIES = """
INSERT INTO beneath_delivery
    (id, subscription, state, owner, fence, due_at, published_at, message_id, event, ordering_key, mailbox, needs, body)
SELECT nextval('beneath_number'), (SELECT id FROM beneath_subscription WHERE name = '{name}'), {state}, {owner}, 7,
    {due}, 1, 'm' || n, 'Happened', {key}, {mailbox}, {needs}, '\\x00'
FROM generate_series(1, {count}) AS n
"""
MAILBOXES = """
INSERT INTO beneath_mailbox (subscription, ordering_key, state, owner, due_at, turn, fence, last_id, parked_event)
SELECT d.subscription, d.mailbox, {state}, {owner}, 1, d.id, d.id, max(d.id), {parked} FROM beneath_delivery AS d
WHERE d.state = 4 GROUP BY d.subscription, d.mailbox, d.id
"""
ONE_MAILBOX = """
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn)
SELECT subscription, mailbox, 0, 1, 1 FROM beneath_delivery LIMIT 1
"""
WORKER = """
INSERT INTO beneath_worker (id, name, host, pid, subscriptions, joined_at, lease_until)
VALUES (5, 'w', '', 0, '[]', 0, {lease})
"""


def deliveries(
    count: int, *, name: str = WORK, state: int, owner: str = "NULL", due: str = "n", key: str = "NULL", needs: str = ""
) -> str:
    mailbox = key if name == MAIL else "NULL"
    needed = f"'{needs}'" if needs else "NULL"
    return DELIVERIES.format(
        name=name, state=state, owner=owner, due=due, key=key, mailbox=mailbox, needs=needed, count=count
    )


def mailboxes(*, state: int, owner: str = "NULL", parked: str = "NULL") -> str:
    return MAILBOXES.format(state=state, owner=owner, parked=parked)


def living() -> str:
    return WORKER.format(lease=NOW)


def dead() -> str:
    return WORKER.format(lease=0)


Work = Callable[[Driver], Awaitable[object]]


@dataclass(frozen=True)
class Step:
    """An operation to measure, and the SQL that fills the tables with a number of items."""

    fill: Callable[[int], list[str]]
    work: Work


async def settle(driver: Driver, outcome: Outcome) -> None:
    """Settle the first 100 claimed mailboxes."""
    rows = await driver.fetch(
        "SELECT ordering_key, fence, last_id FROM beneath_mailbox WHERE state = 1 AND owner = 5 LIMIT 100"
    )
    settlements = []
    for key, fence, last_id in rows:
        delivery = ClaimedDelivery(
            id=last_id,
            subscription=MAIL,
            message_id="m",
            event="Happened",
            ordering_key=key,
            body=b"",
            published_at=1.0,
        )
        claim = Claim(subscription=MAIL, deliveries=[delivery], ordered=True, ordering_key=key, fence=fence)
        settlements.append(Settlement(claim=claim, delivery=delivery, outcome=outcome, delay=5.0, close=True))
    assert await settling.settle(driver, 5, settlements, NOW) == []


async def claim(driver: Driver, name: str) -> None:
    claimed = await claiming.claim(driver, 5, 0, {name: 100}, CLAIM_LIMITS, [float("-inf")], NOW)
    assert len(claimed.claims) == 100


async def claim_past(driver: Driver) -> None:
    claimed = await claiming.claim(
        driver, 5, 0, {WORK: 100}, CLAIM_LIMITS, [float("-inf")], NOW, scheduled_start=NOW - 1
    )
    assert len(claimed.claims) == 100


async def begin_to_retire(driver: Driver) -> None:
    found = retiring.Found(0, await retiring.last_number(driver))
    await retiring.begin(driver, WORK, "Else", "refuse", found, NOW, 10.0)


async def retire(driver: Driver, event: str) -> None:
    number = (await registry.get(driver, WORK)).id
    note = await driver.fetchval(retiring._BEGIN, number, event, "dead")
    retirement = retiring.Retirement(number, event, "dead", note, states=[0])
    assert await retiring.step(driver, retirement, NOW) == (retiring.STEP, True)


async def revive(driver: Driver, work: Callable[..., Awaitable[int]], **values: float) -> None:
    numbers = [row[0] for row in await driver.fetch("SELECT id FROM beneath_dead_letter ORDER BY id LIMIT 100")]
    assert await work(driver, numbers, **values) == 100


def buried(count: int) -> list[str]:
    return [
        f"""
        INSERT INTO beneath_dead_letter (subscription, message_id, event, ordering_key, error, traceback, failures,
            crashes, published_at, died_at, body)
        SELECT '{MAIL}', 'm' || n, 'Happened', 'k' || n, '', '', 1, 0, 1, 1, '\\x00'
        FROM generate_series(1, {count}) AS n
        """  # noqa: S608  # of this test
    ]


def remembered(table: str, columns: str, values: str) -> Callable[[int], list[str]]:
    return lambda n: [f"INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, {n}) AS n"]  # noqa: S608


KEYS = "'k' || n"
PAIRS = {WORK: ["Happened"], MAIL: ["Happened"]}
STEPS = {
    "claim unordered": Step(lambda n: [living(), deliveries(n, state=0)], partial(claim, name=WORK)),
    "claim mailboxes": Step(
        lambda n: [living(), deliveries(n, name=MAIL, state=4, key=KEYS), mailboxes(state=0)], partial(claim, name=MAIL)
    ),
    "claim from one long mailbox": Step(
        lambda n: [
            living(),
            deliveries(n, name=MAIL, state=4, key="'k'"),
            ONE_MAILBOX,
        ],
        lambda driver: claiming.claim(driver, 5, 0, {MAIL: 100}, CLAIM_LIMITS, [float("-inf")], NOW),
    ),
    "settle": Step(
        lambda n: [living(), deliveries(n, name=MAIL, state=4, key=KEYS), mailboxes(state=1, owner="5")],
        partial(settle, outcome=Outcome.DONE),
    ),
    "settle with a retry": Step(
        lambda n: [living(), deliveries(n, name=MAIL, state=4, key=KEYS), mailboxes(state=1, owner="5")],
        partial(settle, outcome=Outcome.RETRY),
    ),
    "take over deliveries": Step(
        lambda n: [dead(), deliveries(n, state=1, owner="5")], lambda it: membership.take_over(it, 5, NOW)
    ),
    "take over mailboxes": Step(
        lambda n: [dead(), deliveries(n, name=MAIL, state=4, key=KEYS), mailboxes(state=1, owner="5")],
        lambda it: membership.take_over(it, 5, NOW),
    ),
    "find orphans": Step(lambda n: [dead(), deliveries(n, state=1, owner="6")], membership.orphans),
    "leave": Step(lambda n: [living(), deliveries(n, state=1, owner="5")], lambda it: membership.leave(it, 5, [], NOW)),
    "unpark deliveries": Step(lambda n: [deliveries(n, state=2)], lambda it: membership.unpark(it, PAIRS, NOW)),
    "find nothing to unpark": Step(
        lambda n: [deliveries(n, state=2, needs="Happened@2")], lambda it: membership.has_parked(it, PAIRS)
    ),
    "unpark mailboxes": Step(
        lambda n: [deliveries(n, name=MAIL, state=4, key=KEYS), mailboxes(state=2, parked="'Happened'")],
        lambda it: membership.unpark(it, PAIRS, NOW),
    ),
    "promote": Step(lambda n: [deliveries(n, state=3)], lambda it: publishing.promote(it, NOW)),
    "promote into mailboxes": Step(
        lambda n: [deliveries(n, name=MAIL, state=3, key=KEYS)], lambda it: publishing.promote(it, NOW)
    ),
    "promote into one mailbox": Step(
        lambda n: [deliveries(n, name=MAIL, state=3, key="'k'")], lambda it: publishing.promote(it, NOW)
    ),
    "publish to a mailbox with overdue deliveries": Step(
        lambda n: [deliveries(n, name=MAIL, state=3, key="'k'")],
        lambda it: publishing.publish(it, [message("new", key="k")], NOW, 120.0),
    ),
    "publish a repeated id": Step(
        remembered("beneath_accepted", "event, id, at", f"'Happened', 'm' || n, {NOW}"),
        lambda it: publishing.publish(it, [msgspec.structs.replace(message("m7"), dedupe=True)], NOW, 120.0),
    ),
    "cancel": Step(lambda n: [deliveries(n, state=3, due=str(NOW + 5))], lambda it: publishing.cancel(it, "m7", NOW)),
    "forget ids": Step(
        remembered("beneath_accepted", "event, id, at", "'Happened', 'm' || n, n"),
        lambda it: publishing.forget_ids(it, NOW),
    ),
    # As during an older open transaction: deleted rows stay in the indexes.
    "claim behind what was promoted": Step(
        lambda n: [
            living(),
            deliveries(n, state=3),
            "DELETE FROM beneath_delivery",
            deliveries(100, state=0),
        ],
        claim_past,
    ),
    "promote behind what was promoted": Step(
        lambda n: [
            deliveries(n, state=3),
            "DELETE FROM beneath_delivery",
            deliveries(100, state=3, due=str(NOW)),
        ],
        lambda it: publishing.promote(it, NOW, after=(NOW - 1, 0)),
    ),
    "forget ids behind what was forgotten": Step(
        lambda n: [
            *remembered("beneath_accepted", "event, id, at", "'Happened', 'm' || n, n")(n),
            "DELETE FROM beneath_accepted",
            *remembered("beneath_accepted", "event, id, at", f"'Happened', 'm' || n, {NOW}")(100),
        ],
        lambda it: publishing.forget_ids(it, NOW, NOW - 1),
    ),
    "begin to retire an event without a backlog": Step(
        lambda n: [
            deliveries(n, state=0),
            f"INSERT INTO beneath_route SELECT 'Else', id FROM beneath_subscription WHERE name = '{WORK}'",  # noqa: S608
        ],
        begin_to_retire,
    ),
    "forget frames": Step(
        remembered("beneath_broadcast", "origin, at, frame", "'', n, '\\x00'"),
        lambda it: broadcasting.forget_frames(it, NOW),
    ),
    "retire": Step(lambda n: [deliveries(n, state=0)], partial(retire, event="")),
    "retire an event": Step(lambda n: [deliveries(n, state=0)], partial(retire, event="Happened")),
    "retry dead letters": Step(buried, partial(revive, work=administration.retry_dead, now=NOW)),
    "discard dead letters": Step(buried, partial(revive, work=administration.discard_dead)),
    "declare what is declared": Step(
        lambda n: [deliveries(n, state=0)],
        lambda it: registry.declared(it, [subscription(WORK)], []),
    ),
}


async def measured(queue: SqlQueue, statements: list[str], work: Work) -> tuple[int, int]:
    """Return the numbers of rows and pages of the queue's tables that `work` touches; all changes are rolled back."""
    async with queue_dialect(queue)._connections._borrowed() as driver:
        await driver.execute("BEGIN")
        try:
            for statement in statements:
                await driver.execute(statement)
            return await touched(driver, work)
        finally:
            await driver.execute("ROLLBACK")


async def touched(driver: Driver, work: Work) -> tuple[int, int]:
    """Return the numbers of rows and pages of the queue's tables that `work` touches, within the open transaction."""
    before = await driver.fetchrow(TOUCHED)
    await work(driver)
    after = await driver.fetchrow(TOUCHED)
    return after[0] - before[0], after[1] - before[1]


TOUCHED = """
SELECT (
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd + n_tup_del)
    FROM pg_stat_xact_user_tables WHERE relname LIKE 'beneath%'
)::bigint, (
    SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relname LIKE 'beneath%'
)::bigint
"""


@pytest.mark.parametrize("name", STEPS)
async def test_step_touches_the_same_number_of_rows_at_any_size(server: PostgresServer, name: str) -> None:
    step = STEPS[name]
    async with new_store(server) as store:
        queue, _ = await store.open(options="command_timeout=0")
        await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
        with suppress(AssertionError):  # Too few items for the step's own check, but enough to prepare the plans.
            await measured(queue, step.fill(1), step.work)
        rows, pages = await measured(queue, step.fill(FEW), step.work)
        many_rows, many_pages = await measured(queue, step.fill(MANY), step.work)
    assert many_rows == rows
    assert many_pages <= pages * 2 + 50  # An index may be one or two levels deeper.


@pytest.mark.parametrize(("keys", "each", "length"), [(100, 10, 10), (1000, 1, 1), (20, 60, 50), (5, 120, 100)])
async def test_claim_reads_each_row_once_and_its_settlement_twice(
    server: PostgresServer, keys: int, each: int, length: int
) -> None:
    async with new_store(server) as store:
        queue, _ = await store.open()
        await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
        await queue.publish([message(f"m{n}", key=f"k{n % keys}") for n in range(keys * each)])
        claims: list[Claim] = []

        async def claim_all(driver: Driver) -> None:
            claimed = await claiming.claim(driver, 5, 0, {MAIL: max(100, keys)}, CLAIM_LIMITS, [float("-inf")], LATER)
            claims.extend(claimed.claims)

        async def settle_all(driver: Driver) -> None:
            ends = [
                Settlement(claim=it, delivery=delivery, outcome=Outcome.DONE, close=delivery is it.deliveries[-1])
                for it in claims
                for delivery in it.deliveries
            ]
            assert await settling.settle(driver, 5, ends, LATER) == []

        async with queue_dialect(queue)._connections._borrowed() as driver:
            await driver.execute("BEGIN")
            await driver.execute(living())
            claim_rows, _ = await touched(driver, claim_all)
            settle_rows, _ = await touched(driver, settle_all)
            await driver.execute("ROLLBACK")
    deliveries = sum(len(it.deliveries) for it in claims)
    assert [len(it.deliveries) for it in claims] == [length] * keys
    # Each mailbox and each settled delivery is read and changed, and the next head is read.
    assert claim_rows <= deliveries + 2 * keys + 10
    assert settle_rows <= 2 * deliveries + 3 * keys + 10
