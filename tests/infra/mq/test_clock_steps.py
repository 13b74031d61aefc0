"""The queue's time on SQLite: steps of a process's wall clock change no due time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from infra.clock import SystemClock
from infra.db import Database
from infra.mq import Message
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import clock as queue_clock
from tests.infra.mq.acting import consumer, done, handle_all, ids, message, subscription

HOUR = 3600.0
WANTS = {"work": 10, "mail": 10}


class SteppedClock(SystemClock):
    """A clock whose wall time can be set; its monotonic time continues."""

    def __init__(self) -> None:
        self.step = 0.0
        self.slept = 0.0

    def time(self) -> float:
        return super().time() + self.step

    def monotonic(self) -> float:
        return super().monotonic() + self.slept


Start = Callable[[SteppedClock], Awaitable[SqlQueue]]


@pytest.fixture
async def start(path: Path) -> AsyncIterator[Start]:
    """Return a function that opens the queue as another process would, with the given clock."""
    async with AsyncExitStack() as ends:

        async def start_one(clock: SteppedClock) -> SqlQueue:
            db = Database(f"sqlite:///{path}", clock=clock)
            await db.open()
            ends.push_async_callback(db.close)
            queue = SqlQueue(db, clock=clock, registry_ttl=0)
            await queue.open()
            ends.push_async_callback(queue.close)
            await queue.declare([subscription("work"), subscription("mail", ordered=True)], [])
            return queue

        yield start_one


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_clock_step_neither_advances_nor_stalls_deliveries(start: Start, step: float) -> None:
    clock = SteppedClock()
    queue = await start(clock)
    before = queue.time()
    await queue.publish([message("now"), message("later", due_at=before + 200)])
    clock.step = step
    assert abs(queue.time() - before) < 60
    await queue.publish([message("after")])
    assert sorted(await handle_all(await consumer(queue), WANTS)) == ["after", "after", "now", "now"]
    assert await queue.scheduled("later")


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_process_with_a_wrong_clock_uses_the_shared_queue_time(start: Start, step: float) -> None:
    right, wrong = SteppedClock(), SteppedClock()
    wrong.step = step
    first, second = await start(right), await start(wrong)
    assert abs(first.time() - second.time()) < 60
    await second.publish([message("now"), message("later", due_at=second.time() + 200)])
    assert await handle_all(await consumer(first), WANTS) == ["now", "now"]
    assert await first.scheduled("later")


async def test_clock_step_does_not_change_the_dedupe_window(start: Start) -> None:
    clock = SteppedClock()
    queue = await start(clock)
    once = Message(id="once", event="Happened", body=b"", published_at=1.0, dedupe=True)
    await queue.publish([once])
    clock.step = HOUR
    await queue.publish([once])
    assert await handle_all(await consumer(queue), WANTS) == ["once", "once"], "one for each subscription"


@pytest.mark.parametrize(("step", "expected"), [(-HOUR, 0.0), (HOUR, HOUR)])
async def test_queue_time_continues_after_a_restart_of_the_machine(
    start: Start, step: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await start(SteppedClock())
    await queue.publish([message("before")])
    reached = queue.time()
    monkeypatch.setattr(queue_clock, "boot", lambda: "another start")
    anew = SteppedClock()
    anew.step, anew.slept = step, -100_000.0
    queue = await start(anew)
    assert expected - 2 <= queue.time() - reached < expected + 60
    worker = await consumer(queue)
    handled: list[str] = []
    async with asyncio.timeout(30):
        while len(handled) < 2:  # The stored time may be a second old.
            claims = await worker.fetch(WANTS, wait=1)
            handled += ids(claims)
            await worker.settle(done(claims))
    assert handled == ["before", "before"]


async def test_monotonic_clock_that_went_back_counts_as_a_restart(start: Start) -> None:
    first = await start(SteppedClock())
    await first.publish([message("before")])
    reached = first.time()
    reset = SteppedClock()
    reset.slept = -10_000.0
    assert (await start(reset)).time() > reached - 2


async def test_stored_machine_starts_are_bounded(start: Start, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in range(queue_clock.STARTS_KEPT + 3):
        monkeypatch.setattr(queue_clock, "boot", lambda each=each: f"start {each}")
        await start(SteppedClock())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM beneath_clock").fetchone() == (queue_clock.STARTS_KEPT,)
