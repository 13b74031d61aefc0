"""The writer thread of SQLite: one transaction per group, and a separate result per operation."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace

from infra.db import Database, sqlite_file
from infra.mq import Message, QueueClosed, QueueIndeterminate, QueueRejected, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import publishing
from infra.mq.drivers.sql.sqlite.connection import Operation, connect
from infra.mq.drivers.sql.sqlite.joinable import Joinable
from infra.mq.drivers.sql.sqlite.publishing import publish
from infra.mq.drivers.sql.sqlite.writer import GROUP_BYTES, GROUP_ITEMS, GROUP_LIMIT, Weight, Writer
from tests.infra.mq.acting import consumer, done, handle_all, message, messages

INSERT = "INSERT INTO beneath_broadcast_event (event) VALUES (?)"


class CommitCounter(sqlite3.Connection):
    """A connection that counts its commits."""

    commits = 0
    rollbacks = 0
    fail_commit: str | None = None

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401  # as in the base class
        if sql == "COMMIT" and self.fail_commit:
            error = sqlite3.OperationalError(self.fail_commit)
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        self.commits += sql == "COMMIT"
        self.rollbacks += sql == "ROLLBACK"
        return super().execute(sql, parameters)


class Bench:
    """A writer with access to its database and its commits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = asyncio.Lock()
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=CommitCounter, timeout=0)
        self.writer = Writer(path, lambda: self.db, self._line, patience=0.2)

    def _line(self) -> AbstractAsyncContextManager[object]:
        return self.lock

    def events(self) -> set[str]:
        with closing(connect(self.path)) as db:
            return {event for (event,) in db.execute("SELECT event FROM beneath_broadcast_event")}


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def insert(db: sqlite3.Connection, event: str) -> str:
    db.execute(INSERT, (event,))
    return event


@pytest.fixture
async def bench(path: Path) -> AsyncIterator[Bench]:
    bench = Bench(path)
    await bench.writer.open()
    yield bench
    await bench.writer.close()


async def test_each_caller_gets_the_result_of_its_own_operation(bench: Bench) -> None:
    wanted = [f"e{each}" for each in range(5)]
    assert await asyncio.gather(*(bench.writer.run(partial(insert, event=each)) for each in wanted)) == wanted
    assert bench.events() == set(wanted)


async def test_operations_added_during_a_group_form_the_next_group(bench: Bench) -> None:
    async with bench.lock:
        calls = [asyncio.ensure_future(bench.writer.run(partial(insert, event=f"e{each}"))) for each in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert bench.db.commits == 1
    assert bench.writer.groups == 1


async def test_a_group_has_a_limit(bench: Bench) -> None:
    async with bench.lock:
        calls = [asyncio.ensure_future(bench.writer.run(lambda _: None)) for _ in range(GROUP_LIMIT + 1)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert bench.writer.groups == 2


async def test_single_operation_does_not_wait_for_a_group(bench: Bench) -> None:
    await bench.writer.run(partial(insert, event="one"))
    assert bench.db.commits == 1


async def test_failed_operation_does_not_fail_its_group(bench: Bench) -> None:
    def fail(db: sqlite3.Connection) -> None:
        insert(db, "half of it")
        raise ValueError("mine alone")

    results = await asyncio.gather(
        bench.writer.run(partial(insert, event="before")),
        bench.writer.run(fail),
        bench.writer.run(partial(insert, event="after")),
        return_exceptions=True,
    )
    assert results[0] == "before"
    assert isinstance(results[1], ValueError)
    assert results[2] == "after"
    assert bench.events() == {"before", "after"}


class Insert(Joinable):
    """Inserts `event`, and adds the events of each pass to `passes`."""

    def __init__(self, event: str, passes: list[list[str]]) -> None:
        self.event = event
        self.passes = passes

    @classmethod
    def run_all(  # pyright: ignore[reportIncompatibleMethodOverride]  # it takes the base's Self for the base
        cls, db: sqlite3.Connection, operations: Sequence[Self]
    ) -> None:
        operations[0].passes.append([it.event for it in operations])
        db.executemany(INSERT, [(it.event,) for it in operations])


async def test_joinable_operations_run_in_one_pass_between_other_operations(bench: Bench) -> None:
    passes: list[list[str]] = []

    def other(_: sqlite3.Connection) -> str:
        passes.append(["other"])
        return "result"

    operations: list[Operation[Any]] = [Insert("a", passes), Insert("b", passes), other, Insert("c", passes)]
    assert await asyncio.gather(*map(bench.writer.run, operations)) == [None, None, "result", None]
    assert passes == [["a", "b"], ["other"], ["c"]]
    assert bench.events() == {"a", "b", "c"}


async def test_failed_joinable_operation_fails_alone(bench: Bench) -> None:
    await bench.writer.run(partial(insert, event="taken"))
    passes: list[list[str]] = []
    operations = [Insert(each, passes) for each in ("a", "taken", "b")]
    results = await asyncio.gather(*map(bench.writer.run, operations), return_exceptions=True)
    assert [type(it) for it in results] == [type(None), QueueRejected, type(None)]
    assert passes == [["a", "taken", "b"], ["a"], ["taken"], ["b"]]
    assert bench.events() == {"a", "taken", "b"}


async def test_publishes_of_a_group_are_stored_in_one_pass_and_refused_alone(
    queue: SqlQueue, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[list[str]] = []

    def counted(connection: sqlite3.Connection, batch: Sequence[Message], window: float, *, now: float) -> None:
        stored.append([it.id for it in batch])
        publish(connection, batch, window, now=now)

    monkeypatch.setattr(publishing, "publish", counted)
    worker = await consumer(queue)
    for names, passes in (
        (["a", "b", "c"], [["a", "b", "c"]]),
        (["d", "\ud800", "e"], [["d", "\ud800", "e"], ["d"], ["\ud800"], ["e"]]),
    ):
        async with db.write_lock():
            bodies = [replace(message("body"), id=name) for name in names]
            calls = [asyncio.ensure_future(queue.publish([it])) for it in bodies]
            await asyncio.sleep(0)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(it) for it in results] == [QueueRejected if it == "\ud800" else type(None) for it in names]
        assert stored == passes
        assert await handle_all(worker, {"work": 10}) == [it for it in names if it != "\ud800"]
        stored.clear()


async def test_operation_refused_by_the_database_is_rejected(bench: Bench) -> None:
    await bench.writer.run(partial(insert, event="one"))
    with pytest.raises(QueueRejected, match=r"queue\.db: UNIQUE"):
        await bench.writer.run(partial(insert, event="one"))


async def test_locked_database_is_unavailable_in_one_line_and_unchanged(bench: Bench) -> None:
    with closing(connect(bench.path)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable, match="database is locked") as caught:
            await bench.writer.run(partial(insert, event="one"))
    assert "\n" not in str(caught.value)
    assert bench.events() == set()
    await bench.writer.run(partial(insert, event="two"))
    assert bench.events() == {"two"}


async def test_disk_error_at_commit_is_indeterminate_and_not_retried(bench: Bench) -> None:
    bench.db.fail_commit = "disk I/O error"
    with pytest.raises(QueueIndeterminate, match="disk I/O error"):
        await bench.writer.run(partial(insert, event="one"))
    bench.db.fail_commit = None
    await bench.writer.run(partial(insert, event="two"))
    assert bench.events() == {"two"}


async def test_a_cancelled_caller_leaves_its_group_whole(bench: Bench) -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        insert(db, "slow")
        running.set()
        assert go_on.wait(5)

    first = asyncio.ensure_future(bench.writer.run(slow))
    assert await asyncio.to_thread(running.wait, 5)
    first.cancel()
    waiting = asyncio.ensure_future(bench.writer.run(partial(insert, event="never begun")))
    await asyncio.sleep(0)
    waiting.cancel()
    last = asyncio.ensure_future(bench.writer.run(partial(insert, event="last")))
    await asyncio.sleep(0)
    go_on.set()
    await last
    assert first.cancelled()
    assert waiting.cancelled()
    assert bench.events() == {"slow", "last"}


async def test_close_completes_the_accepted_operations(bench: Bench) -> None:
    calls = [asyncio.ensure_future(bench.writer.run(partial(insert, event=f"e{each}"))) for each in range(3)]
    await asyncio.sleep(0)
    await bench.writer.close()
    await asyncio.gather(*calls)
    assert len(bench.events()) == 3
    with pytest.raises(QueueClosed):
        await bench.writer.run(partial(insert, event="late"))


async def test_missing_file_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "missing.db"
    writer = Writer(path, partial(connect, path), asyncio.Lock, patience=0.1)
    with pytest.raises(QueueUnavailable, match=r"missing\.db: unable to open database file: check that"):
        await writer.open()
    assert not path.exists()


async def test_a_group_is_bounded_in_deliveries_and_in_bytes(bench: Bench) -> None:
    for weight, per_group in ((Weight(GROUP_ITEMS // 2), 2), (Weight(1, GROUP_BYTES), 1)):
        before = bench.writer.groups
        async with bench.lock:
            calls = [asyncio.ensure_future(bench.writer.run(lambda _: None, weight)) for _ in range(4)]
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        assert bench.writer.groups - before == 4 // per_group


async def test_many_failed_operations_cost_one_more_transaction(bench: Bench) -> None:
    def fail(db: sqlite3.Connection, event: str) -> None:
        insert(db, event)
        raise ValueError(event)

    async with bench.lock:
        calls = [
            asyncio.ensure_future(bench.writer.run(partial(fail if each % 2 else insert, event=f"e{each}")))
            for each in range(20)
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(it, ValueError) for it in results] == [bool(each % 2) for each in range(20)]
    assert bench.events() == {f"e{each}" for each in range(0, 20, 2)}
    assert (bench.db.commits, bench.db.rollbacks) == (1, 1)


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_ERROR]
)
async def test_database_failure_makes_the_whole_group_unavailable_at_once(bench: Bench, code: int) -> None:
    runs = 0

    def troubled(db: sqlite3.Connection) -> None:
        nonlocal runs
        runs += 1
        insert(db, "half of it")
        error = MemoryError() if code == sqlite3.SQLITE_NOMEM else sqlite3.OperationalError("trouble")
        error.sqlite_errorcode = code  # type: ignore[union-attr]  # as sqlite3 sets it
        raise error

    async with bench.lock:
        calls = [asyncio.ensure_future(bench.writer.run(it)) for it in (partial(insert, event="a"), troubled)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(it) for it in results] == [QueueUnavailable, QueueUnavailable]
    assert runs == 1, "trying each alone would wait for the same disk again and again"
    assert bench.events() == set()


@pytest.mark.parametrize("cancelled", ["the pump", "all tasks"])
async def test_cancelled_pump_completes_the_current_group_and_refuses_the_rest(bench: Bench, cancelled: str) -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> str:
        insert(db, "begun")
        running.set()
        assert go_on.wait(5)
        return "begun"

    late: list[object] = []
    first = asyncio.ensure_future(bench.writer.run(slow, on_cancelled=late.append))
    assert await asyncio.to_thread(running.wait, 5)
    second = asyncio.ensure_future(bench.writer.run(partial(insert, event="not begun"), on_cancelled=late.append))
    await asyncio.sleep(0)
    me = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not me and (cancelled == "all tasks" or task is bench.writer._pump):
            task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    while bench.writer._pump is not None:  # noqa: ASYNC110  # it ends with what has begun
        await asyncio.sleep(0)
    assert await bench.writer.run(partial(insert, event="next")) == "next"
    assert bench.events() == {"begun", "next"}
    if cancelled == "all tasks":
        assert late == ["begun"], "its caller is not there any more"
    else:
        assert results[0] == "begun"
        assert isinstance(results[1], QueueUnavailable)
        assert late == []


async def test_cancelled_close_continues(path: Path) -> None:
    writer = Writer(path, partial(connect, path), asyncio.Lock, patience=0.1)
    await writer.open()
    writing = asyncio.ensure_future(writer.run(partial(insert, event="last")))
    await asyncio.sleep(0)
    closing_ = asyncio.ensure_future(writer.close())
    await asyncio.sleep(0)
    closing_.cancel()
    await asyncio.wait([closing_, writing])
    assert writing.result() == "last"
    assert writer._thread is None, "the connection and its thread are gone"


@pytest.mark.parametrize("cancelled", ["the pump", "all tasks"])
async def test_pump_cancelled_before_its_first_step_leaves_no_caller_waiting(bench: Bench, cancelled: str) -> None:
    writing = asyncio.ensure_future(bench.writer.run(partial(insert, event="one")))
    while bench.writer._pump is None:  # noqa: ASYNC110  # it begins with the next step of the loop
        await asyncio.sleep(0)
    bench.writer._pump.cancel()
    if cancelled == "all tasks":
        writing.cancel()
    async with asyncio.timeout(5):
        [result] = await asyncio.gather(writing, return_exceptions=True)
        assert result == "one" or isinstance(result, QueueUnavailable | asyncio.CancelledError)
        assert await bench.writer.run(partial(insert, event="two")) == "two"
        await bench.writer.close()
    assert "two" in bench.events()


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("surprise")])
async def test_unknown_error_around_a_group_is_raised_to_each_caller(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, statement: str, error: Exception
) -> None:
    honest = CommitCounter.execute

    def failing(self: CommitCounter, sql: str, parameters: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401  # as it is
        if sql == statement:
            raise error
        return honest(self, sql, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(CommitCounter, "execute", failing)
        async with bench.lock:
            calls = [asyncio.ensure_future(bench.writer.run(partial(insert, event=it))) for it in ("a", "b")]
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(it) for it in results] == [QueueUnavailable, QueueUnavailable]
    assert bench.events() == set()
    assert await bench.writer.run(partial(insert, event="c")) == "c"


async def test_file_is_checked_before_each_commit_that_accepts_messages(path: Path) -> None:
    checks: list[str] = []
    writer = Writer(
        path,
        partial(connect, path),
        asyncio.Lock,
        patience=0.1,
        check=lambda: checks.append("always"),
        check_if_due=lambda: checks.append("now and then"),
    )
    await writer.open()
    await writer.run(partial(insert, event="settled"), accepts=False)
    await writer.run(partial(insert, event="published"))
    await asyncio.gather(
        writer.run(partial(insert, event="both"), accepts=False), writer.run(partial(insert, event="together"))
    )
    await writer.close()
    assert checks == ["now and then", "always", "always"]


async def test_settlements_detect_an_exchanged_file_within_a_bounded_time(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "CHECK_INTERVAL", 0.0)
    worker = await consumer(queue)
    await queue.publish(messages(1))
    claims = await worker.fetch({"work": 1}, wait=0)
    move_away(path)
    with pytest.raises(QueueUnavailable, match="was removed or moved away"):
        await worker.settle(done(claims))
