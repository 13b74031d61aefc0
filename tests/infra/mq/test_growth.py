"""The cost of each SQLite operation is the same at 100,000 items as at 1,000, counted in virtual machine steps."""

# ruff: noqa: S608  # statements are put together from the constants below
import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import msgspec
import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import Claim, ClaimedDelivery, Outcome, Settlement, WorkerInfo
from infra.mq.drivers.sql.sqlite import (
    administration,
    broadcasting,
    claiming,
    inspection,
    membership,
    parking,
    publishing,
    registry,
    retiring,
    scheduling,
    settling,
)
from infra.mq.drivers.sql.sqlite.connection import connect
from tests.contract.sqlite_harness import migrate
from tests.infra.mq.acting import message, subscription

FEW, MANY = 1_000, 100_000
WORK, MAIL = 1, 2
DEAD, LIVE = 3, 4
NOW = 1_000_000.0
EVERY = 100
"""Virtual machine steps of SQLite between two calls of the progress handler."""

Step = Callable[[sqlite3.Connection], object]
Fill = Callable[[sqlite3.Connection, int], object]

NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n LIMIT :many)"
DELIVERIES = f"""
INSERT INTO beneath_delivery
    (id, subscription, state, owner, due_at, published_at, message_id, event, mailbox, body)
{NUMBERS}
SELECT i, :subscription, :state, :owner, :due, 1.0, 'm' || i, 'Happened', {{}}, x'00' FROM n
"""
MAILBOXES = f"""
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, owner, last_id, parked_event)
{NUMBERS}
SELECT :subscription, 'k' || i, :state, 1.0, i, :owner, i, CASE WHEN :state = 2 THEN 'Happened' END FROM n
"""
LETTERS = f"""
INSERT INTO beneath_dead_letter
    (id, subscription, message_id, event, error, traceback, failures, crashes, published_at, died_at, body)
{NUMBERS} SELECT i, 'work', 'm', 'Happened', 'E', '', 1, 0, 1.0, 1.0, x'00' FROM n
"""
ACCEPTED = f"INSERT INTO beneath_accepted (event, id, at) {NUMBERS} SELECT 'Happened', 'm' || i, 1.0 FROM n"
FORMERLY_ACCEPTED = f"INSERT INTO beneath_dedupe (id, at) {NUMBERS} SELECT 'm' || i, 1.0 FROM n"
FRAMES = f"INSERT INTO beneath_broadcast (id, origin, at, frame) {NUMBERS} SELECT i - 99, 'o', 1.0, x'00' FROM n"
FRAMES_SENT = "UPDATE beneath_counter SET value = ? WHERE name = 'beneath_broadcast_number'"


def store(db: sqlite3.Connection, many: int, state: int, *, owner: int | None = None, due: float = 1.0) -> None:
    values = {"many": many, "subscription": WORK, "state": state, "owner": owner, "due": due}
    db.execute(DELIVERIES.format("NULL"), values)


def store_mailboxes(db: sqlite3.Connection, many: int, state: int, *, owner: int | None = None) -> None:
    values = {"many": many, "subscription": MAIL, "state": 4, "owner": None, "due": 1.0}
    db.execute(DELIVERIES.format("'k' || i"), values)
    db.execute(MAILBOXES, {**values, "state": state, "owner": owner})


def store_one_mailbox(db: sqlite3.Connection, many: int, state: int) -> None:
    values = {"many": many, "subscription": MAIL, "state": state, "owner": None, "due": 1.0}
    db.execute(DELIVERIES.format("'k'"), values)
    db.execute("INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn) VALUES (2, 'k', 0, 1, 1)")


def filled_with(statement: str) -> Fill:
    return lambda db, many: db.execute(statement, {"many": many})


def store_frames(db: sqlite3.Connection, many: int) -> None:
    db.execute(FRAMES, {"many": many})
    db.execute(FRAMES_SENT, (many,))


def publish(db: sqlite3.Connection, *, dedupe: bool = False) -> None:
    publishing.publish(db, [msgspec.structs.replace(message("new", key="k"), dedupe=dedupe)], 120.0, now=NOW)


def settle(outcome: Outcome) -> Step:
    delivery = ClaimedDelivery(
        id=100, subscription="work", message_id="m", event="Happened", ordering_key=None, body=b"", published_at=1.0
    )
    claim = Claim(subscription="work", deliveries=[delivery])
    settlement = Settlement(claim=claim, delivery=delivery, outcome=outcome)
    return lambda db: settling.settle(db, LIVE, [settlement], now=NOW)


def clock() -> float:
    return NOW


WANTS = {"work": 10, "mail": 10}
DEAD_LETTERS = list(range(100, 200))

STEPS: dict[str, tuple[Fill, Step]] = {
    "publish beside ready deliveries": (lambda db, many: store(db, many, 0), publish),
    "publish beside overdue deliveries": (lambda db, many: store(db, many, 3), publish),
    "publish into an overdue mailbox": (lambda db, many: store_one_mailbox(db, many, 3), publish),
    "publish into a full mailbox": (lambda db, many: store_one_mailbox(db, many, 4), publish),
    "publish beside outdated ids": (filled_with(ACCEPTED), lambda db: publish(db, dedupe=True)),
    "publish beside ids of a former release": (
        filled_with(FORMERLY_ACCEPTED),
        lambda db: publish(db, dedupe=True),
    ),
    "cancel": (
        lambda db, many: store(db, many, 3, due=2 * NOW),
        lambda db: scheduling.cancel(db, "m100", now=NOW),
    ),
    "claim ready deliveries": (
        lambda db, many: store(db, many, 0),
        lambda db: claiming.claim(db, LIVE, WANTS, CLAIM_LIMITS, now=NOW),
    ),
    "claim mailboxes": (
        lambda db, many: store_mailboxes(db, many, 0),
        lambda db: claiming.claim(db, LIVE, WANTS, CLAIM_LIMITS, now=NOW),
    ),
    "claim a long mailbox": (
        lambda db, many: store_one_mailbox(db, many, 4),
        lambda db: claiming.claim(db, LIVE, WANTS, CLAIM_LIMITS, now=NOW),
    ),
    "claim with overdue deliveries": (
        lambda db, many: store(db, many, 3),
        lambda db: claiming.claim(db, LIVE, WANTS, CLAIM_LIMITS, now=NOW),
    ),
    "claim beside another listener's overdue deliveries": (
        lambda db, many: store(db, many, 3),
        lambda db: claiming.claim(db, LIVE, {"mail": 10}, CLAIM_LIMITS, now=NOW),
    ),
    "poll": (lambda db, many: store(db, many, 3, due=2 * NOW), lambda db: claiming.next_due(db, WANTS)),
    "settle as done": (lambda db, many: store(db, many, 1, owner=LIVE), settle(Outcome.DONE)),
    "settle as failed": (lambda db, many: store(db, many, 1, owner=LIVE), settle(Outcome.RETRY)),
    "settle as parked": (lambda db, many: store(db, many, 1, owner=LIVE), settle(Outcome.PARK)),
    "take over deliveries": (
        lambda db, many: store(db, many, 1, owner=DEAD),
        lambda db: membership.take_over_some(db, None, worker=DEAD, clock=clock),
    ),
    "take over mailboxes": (
        lambda db, many: store_mailboxes(db, many, 1, owner=DEAD),
        lambda db: membership.take_over_some(db, None, worker=DEAD, clock=clock),
    ),
    "find claims without a worker": (lambda db, many: store(db, many, 1, owner=DEAD), membership.unknown_owners),
    "leave": (
        lambda db, many: store(db, many, 1, owner=LIVE),
        lambda db: membership.leave_some(db, None, worker=LIVE, keep=[], clock=clock),
    ),
    "unpark deliveries": (
        lambda db, many: store(db, many, 2),
        lambda db: parking.unpark_some(db, None, it=parking.Needed(WORK, False, "Happened"), clock=clock),
    ),
    "unpark mailboxes": (
        lambda db, many: store_mailboxes(db, many, 2),
        lambda db: parking.unpark_some(db, None, it=parking.Needed(MAIL, True, "Happened"), clock=clock),
    ),
    "find what can be unparked": (
        lambda db, many: store(db, many, 2),
        lambda db: parking.needed(db, {"work": ["Happened", "Other"], "mail": ["Happened"]}),
    ),
    "begin to retire": (
        lambda db, many: store(db, many, 0),
        lambda db: retiring.begin(db, "work", None, "discard", [], None),
    ),
    "retire ready deliveries": (
        lambda db, many: store(db, many, 0),
        lambda db: retiring.remove_some(db, retiring.Walk(WORK, None, dead=True, state=3), clock=clock),
    ),
    "retire scheduled deliveries": (
        lambda db, many: store(db, many, 3),
        lambda db: retiring.remove_some(db, retiring.Walk(WORK, None, dead=False, state=2), clock=clock),
    ),
    "retire an event in mailboxes": (
        lambda db, many: store_mailboxes(db, many, 0),
        lambda db: retiring.remove_some(db, retiring.Walk(MAIL, "Happened", dead=False, state=4), clock=clock),
    ),
    "retire mailboxes": (
        lambda db, many: store_mailboxes(db, many, 0),
        lambda db: retiring.remove_some(db, retiring.Walk(MAIL, None, dead=False, state=5), clock=clock),
    ),
    "retry dead letters": (filled_with(LETTERS), lambda db: administration.retry_some(db, DEAD_LETTERS, now=NOW)),
    "discard dead letters": (filled_with(LETTERS), lambda db: administration.discard_some(db, DEAD_LETTERS)),
    "list dead letters": (
        filled_with(LETTERS),
        lambda db: inspection.dead_letters(db, subscription="work", event=None, limit=10, after=None),
    ),
    "broadcast": (store_frames, lambda db: broadcasting.broadcast(db, [b"x"], "me", 60.0, now=NOW)),
    "receive broadcasts": (store_frames, lambda db: broadcasting.broadcasts_after(db, 0, "me")),
    "declare again": (
        lambda db, many: store(db, many, 0),
        lambda db: registry.is_declared(db, [subscription("work")], []),
    ),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("growth") / "queue.db"
    asyncio.run(migrate(path))
    with closing(connect(path)) as db:
        registry.declare(db, [subscription("work"), subscription("mail", ordered=True)], [], now=NOW)
        for name in ("dead", "live"):
            membership.join(db, WorkerInfo(id=name, subscriptions=frozenset()), now=NOW)
    return path


@pytest.fixture
def memory(empty: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    """Open copies of the empty queue in memory."""
    opened: list[sqlite3.Connection] = []

    def open_one() -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None)
        with closing(connect(empty)) as source:
            source.backup(db)
        opened.append(db)
        return db

    yield open_one
    for db in opened:
        db.close()


def steps_of(db: sqlite3.Connection, step: Step) -> int:
    counted = count()
    db.set_progress_handler(lambda: next(counted) and 0, EVERY)
    step(db)
    db.set_progress_handler(None, 0)
    return next(counted)


@pytest.mark.parametrize("name", STEPS)
def test_step_costs_the_same_at_any_size(name: str, memory: Callable[[], sqlite3.Connection]) -> None:
    fill, step = STEPS[name]
    counts = []
    for many in (FEW, MANY):
        db = memory()
        db.execute("BEGIN")
        fill(db, many)
        counts.append(steps_of(db, step))
    few, many = counts
    assert many <= few + 2, f"{few} and {many} times {EVERY} steps"
