"""The relay's statements for one group cost as many SQLite steps with 100,000 rows as with 1,000."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, StaticPool, create_engine
from sqlalchemy.dialects import sqlite

from bus.publishing import outbox
from tests.contract.sqlite_harness import migrate

FEW, MANY = 1_000, 100_000
EVERY = 100
"""Number of virtual machine steps per count of SQLite's progress handler."""

ROWS = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :many)
INSERT INTO beneath_outbox (kind, message_id, event, ordering_key, due_at, published_at, created_at, body)
SELECT :kind, :kind || i, 'Happened', CASE WHEN :kind = 'publish' THEN 'k' || i % 100 END, 9.0, 1.0, i, zeroblob(500)
FROM n
"""
LIMIT = {"limit": outbox.GROUP}
SENDER = {"sender": "sender"}
CARRIED = list(range(1, 201))
PUSHED = [f"direct{n}" for n in range(1, 201)]
STEPS: dict[str, tuple[Executable, dict[str, Any]]] = {
    "read which kinds wait": (outbox._PENDING, {}),
    "read cancellations": (outbox._CANCELLATIONS, LIMIT),
    "read ordered rows": (outbox._ORDERED, LIMIT),
    "read rows that their process left": (outbox._LEFTOVER, {**LIMIT, "last": 3 * MANY}),
    "claim ordered rows": (outbox._CLAIM, {**SENDER, "keys": CARRIED}),
    "claim pushed rows": (outbox._CLAIM_DIRECT, {**SENDER, "keys": PUSHED}),
    "release ordered rows": (outbox._UNCLAIM, {**SENDER, "keys": CARRIED}),
    "release pushed rows": (outbox._UNCLAIM_DIRECT, {**SENDER, "keys": PUSHED}),
    "delete ordered rows": (outbox._REMOVE, {"ids": CARRIED}),
    "delete pushed rows": (outbox._REMOVE_DIRECT, {"ids": PUSHED}),
    "withdraw cancelled rows": (outbox._DELETE_UNSENT.where(outbox.OUTBOX.c.message_id.in_(PUSHED)), {}),
    "find the oldest row": (outbox._OLDEST, {}),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("growth") / "outbox.db"
    asyncio.run(migrate(path))
    return path


@pytest.fixture(scope="module")
def sizes(empty: Path) -> Iterator[dict[int, sqlite3.Connection]]:
    """Databases with few and with many rows of each kind, by the number of rows."""
    opened = {many: sqlite3.connect(":memory:", isolation_level=None) for many in (FEW, MANY)}
    for many, db in opened.items():
        with closing(sqlite3.connect(empty)) as source:
            source.backup(db)
        for kind in ("publish", "direct", "cancel"):
            db.execute(ROWS, {"many": many, "kind": kind})
    yield opened
    for db in opened.values():
        db.close()


def steps_of(db: sqlite3.Connection, statement: Executable, values: dict[str, Any]) -> int:
    counted = count()
    with create_engine("sqlite://", creator=lambda: db, poolclass=StaticPool).connect() as connection:
        db.execute("BEGIN")
        db.set_progress_handler(lambda: next(counted) and 0, EVERY)
        result = connection.execute(statement, values)
        if result.returns_rows:
            result.all()
        db.set_progress_handler(None, 0)
        db.execute("ROLLBACK")
    return next(counted)


@pytest.mark.parametrize(("statement", "values"), STEPS.values(), ids=STEPS)
def test_cost_of_a_group_does_not_grow_with_waiting_rows(
    sizes: dict[int, sqlite3.Connection], statement: Executable, values: dict[str, Any]
) -> None:
    few, many = (steps_of(db, statement, values) for db in sizes.values())
    assert many <= few + 2, f"{few} and {many} times {EVERY} steps"


def test_backlog_is_counted_without_reading_bodies(sizes: dict[int, sqlite3.Connection]) -> None:
    statement = str(outbox._COUNT.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    [line] = [row[3] for row in sizes[FEW].execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert "USING COVERING INDEX ix_beneath_outbox_kind" in line
