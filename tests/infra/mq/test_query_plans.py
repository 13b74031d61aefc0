"""Query plans of the SQLite driver: every statement finds its rows by an index."""

import asyncio
import importlib
import pkgutil
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from infra.mq.drivers.sql import sqlite as statements
from infra.mq.drivers.sql.sqlite.connection import connect
from tests.contract.sqlite_harness import migrate

FRAGMENTS = {"_CHARGE", "_FIRST_OF_MAILBOX", "DEAD_LETTERS"}
"""Parts of statements; `DEAD_LETTERS` has a test of its own."""

SMALL = {
    "SCAN beneath_subscription",
    "SCAN beneath_route",
    "SCAN beneath_broadcast_event",
    "SCAN beneath_worker",
    "SCAN beneath_clock",
    "SCAN beneath_retirement",
}
"""Tables with a row for each listener, event, worker, start of the machine, or listener that is being retired."""

RARE = {
    "inspection._CLAIMED",  # Reads only in-flight deliveries, from a covering index.
    "inspection._OPEN_MAILBOXES",  # Reads only in-flight mailboxes.
    "claiming._NEXT_DUE",  # Reads the first entry of an index.
    "clock._FORGET",  # The table has few rows.
    "retiring._CLAIMED",  # Sorts in-flight deliveries with the same publish time.
}
HARMLESS = re.compile(r"SCAN (CONSTANT ROW|\w+ VIRTUAL TABLE|\(subquery-\d+\))")
"""What scans no table; the plan has lines of its own for what a subquery reads."""


def all_statements() -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(statements.__path__):
        for name, value in vars(importlib.import_module(f"{statements.__name__}.{module.name}")).items():
            if (
                isinstance(value, str)
                and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", value)
                and name not in FRAGMENTS
            ):
                yield f"{module.name}.{name}", value


def plan(db: sqlite3.Connection, statement: str) -> list[str]:
    if "{}" in statement:
        return [line for state in range(5) for line in plan(db, statement.format(state))]
    names = re.findall(r":([a-z]\w*)", statement)
    values = dict.fromkeys(names) if names else [None] * statement.count("?")
    return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.fixture(scope="module", params=["empty", "analyzed while empty", "analyzed while full"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("plans") / "queue.db"
    asyncio.run(migrate(path))
    with closing(connect(path)) as db:
        if request.param == "analyzed while full":
            fill(db)
        if request.param != "empty":
            db.execute("ANALYZE")
        yield db


def fill(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    db.executemany(
        """
        INSERT INTO beneath_delivery
            (id, subscription, state, owner, due_at, published_at, message_id, event, mailbox, body)
        VALUES (?, 1, ?, 1, 1.0, 1.0, 'm', 'e', 'k', x'00')
        """,
        [(each, each % 5) for each in range(1000)],
    )
    db.execute("COMMIT")


every_statement = pytest.mark.parametrize(
    ("name", "statement"), [pytest.param(*it, id=it[0]) for it in all_statements()]
)


@every_statement
def test_statement_scans_no_table_and_sorts_nothing(db: sqlite3.Connection, name: str, statement: str) -> None:
    lines = plan(db, statement)
    scans = [it for it in lines if it.startswith("SCAN") and not HARMLESS.match(it)]
    scans = [it for it in scans if " ".join(it.split()[:2]) not in SMALL]
    sorts = [it for it in lines if "TEMP B-TREE" in it]
    if name in RARE:
        assert all("INDEX" in it for it in scans), "at least never the bodies"
    else:
        assert not scans
        assert not sorts


def test_counting_a_backlog_reads_no_bodies(db: sqlite3.Connection) -> None:
    counting = dict(all_statements())
    for name in ("_READY", "_CLAIMED", "_PARKED", "_SCHEDULED", "_IN_MAILBOXES"):
        lines = plan(db, counting[f"inspection.{name}"])
        assert any("COVERING INDEX beneath_delivery" in it for it in lines), (name, lines)


@pytest.mark.parametrize("condition", ["subscription = ?", "event = ?", "subscription = ? AND event = ?", "1"])
def test_dead_letters_are_listed_by_an_index(db: sqlite3.Connection, condition: str) -> None:
    lines = plan(db, f"SELECT * FROM beneath_dead_letter WHERE id > ? AND {condition} ORDER BY id LIMIT ?")  # noqa: S608
    assert all("SEARCH beneath_dead_letter" in it for it in lines)


def test_statements_of_every_module_are_found() -> None:
    assert len(dict(all_statements())) > 50


@every_statement
def test_parameters_are_question_marks_or_names(name: str, statement: str) -> None:
    """Python 3.14 binds a sequence to the first and a mapping to the second, and ?1 and the like to neither."""
    assert not re.search(r"\?\d", statement), name
    assert "?" not in statement or not re.search(r":[a-z]", statement), name
