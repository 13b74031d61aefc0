"""Retirement on SQLite: it is recorded first, runs in steps, and is completed by repeating the call."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from infra.mq import ListenerInUse, QueueUnavailable, SubscriptionConflict, SubscriptionNotFound
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import retiring
from tests.infra.mq.acting import consumer, handle_all, message, messages, subscription

STEP = 10
WANTS = {"work": 100, "mail": 100}
ALL = [pytest.param("work", id="unordered"), pytest.param("mail", id="ordered")]


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CLAIMED", "_PARKED", "_SCHEDULED", "_READY", "_IN_MAILBOXES"):
        statement: str = getattr(retiring, name)
        monkeypatch.setattr(retiring, name, statement.replace(f"LIMIT {retiring.REMOVED_AT_ONCE}", f"LIMIT {STEP}"))
    walks = [(statement.replace("LIMIT 500", f"LIMIT {STEP}"), *rest) for statement, *rest in retiring._WALKS]
    monkeypatch.setattr(retiring, "_WALKS", walks)
    monkeypatch.setattr(retiring, "REMOVED_AT_ONCE", STEP)


def die_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Simulate the end of the process after so many steps of a retirement."""
    honest, left = retiring.remove_some, iter(range(steps))

    def remove(*args: object, **named: object) -> object:
        if next(left, None) is None:
            raise sqlite3.OperationalError("the process is gone")
        return honest(*args, **named)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(retiring, "remove_some", remove)


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute(f"SELECT count(*) FROM beneath_{table}").fetchone()[0])  # noqa: S608  # a constant


@pytest.mark.parametrize("backlog", ["discard", "dead"])
@pytest.mark.parametrize("name", ALL)
async def test_backlog_is_removed_in_steps(
    queue: SqlQueue, path: Path, name: str, backlog: Literal["discard", "dead"]
) -> None:
    await queue.publish(messages(55, keys=7))
    before = queue._dialect._writer.groups  # type: ignore[attr-defined]  # what it counts
    assert await queue.retire(name, backlog=backlog) == 55
    assert queue._dialect._writer.groups - before > 55 // STEP  # type: ignore[attr-defined]  # as above
    assert len(await queue.dead_letters(limit=100)) == (55 if backlog == "dead" else 0)
    assert (rows(path, "delivery"), rows(path, "retirement"), rows(path, "subscription")) == (55, 0, 1)
    assert rows(path, "mailbox") == (7 if name == "work" else 0)


@pytest.mark.parametrize("event", [None, "Happened"])
@pytest.mark.parametrize("name", ALL)
async def test_interrupted_retirement_is_completed_by_the_same_call(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch, name: str, event: str | None
) -> None:
    await queue.publish(messages(55, keys=7))
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        with pytest.raises(QueueUnavailable):
            await queue.retire(name, event=event, backlog="discard")
    left = rows(path, "delivery") - 55
    assert 0 < left < 55
    assert any(f"retiring {name}" in it for it in await queue.warnings())
    with pytest.raises(ListenerInUse, match=f"still has {left} deliveries"):
        await queue.retire(name, event=event)
    assert await queue.retire(name, event=event, backlog="discard") == left
    assert await queue.warnings() == []
    assert rows(path, "delivery") == 55


@pytest.mark.parametrize("name", ALL)
async def test_nothing_is_routed_or_claimed_after_retirement_has_begun(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    worker = await consumer(queue)
    await queue.declare([subscription(name, events=["Other"], ordered=name == "mail")], [])
    await queue.publish(messages(30, keys=3))
    with monkeypatch.context() as patch:
        die_after(patch, 1)
        with pytest.raises(QueueUnavailable):
            await queue.retire(name, event="Happened", backlog="discard")
    await queue.publish([message("more"), message("other", event="Other")])
    assert await handle_all(worker, {name: 100}) == ["other"]
    assert rows(path, "delivery") == 31, "a claim removes what it finds of them; the other listener has its own"
    assert await queue.retire(name, event="Happened", backlog="discard") == 0
    await queue.publish([message("afterwards"), message("other again", event="Other")])
    assert await handle_all(worker, {name: 100}) == ["other again"]


async def test_subscription_being_retired_can_be_neither_declared_nor_resumed(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.publish(messages(30))
    with monkeypatch.context() as patch:
        die_after(patch, 1)
        with pytest.raises(QueueUnavailable):
            await queue.retire("work", backlog="discard")
    with pytest.raises(SubscriptionConflict, match="work is being retired: complete that with `beneath bus retire`"):
        await queue.declare([subscription("work")], [])
    with pytest.raises(SubscriptionNotFound, match="is being retired"):
        await queue.resume("work")
    await queue.retire("work", backlog="discard")
    await queue.declare([subscription("work")], [])
    await queue.publish([message("new")])
    assert await handle_all(await consumer(queue), {"work": 100}) == ["new"]


async def test_message_accepted_while_a_backlog_is_counted_is_not_removed(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = retiring.waiting

    def counted_before(db: sqlite3.Connection, name: str, event: str | None) -> tuple[int, int]:
        return next(counts)

    with closing(sqlite3.connect(queue._dialect._path)) as db:  # type: ignore[attr-defined]  # where it is
        counts = iter([honest(db, "work", None)])
    await queue.publish([message("late")])
    monkeypatch.setattr(retiring, "waiting", counted_before)
    with pytest.raises(ListenerInUse):
        await queue.retire("work")
    assert await handle_all(await consumer(queue), {"work": 100}) == ["late"]


async def test_retirement_step_is_bounded_in_bytes(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retiring, "REMOVED_BYTES", 1)
    await queue.publish(messages(5))
    before = queue._dialect._writer.groups  # type: ignore[attr-defined]  # what it counts
    assert await queue.retire("work", backlog="dead") == 5
    assert queue._dialect._writer.groups - before >= 5  # type: ignore[attr-defined]  # as above
