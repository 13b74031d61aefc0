"""The queue time on PostgreSQL: the server's time, carried by the local monotonic clock, never running backwards."""

import asyncio
import re
import time
from typing import Any, cast

import pytest

from infra.clock import FakeClock, SystemClock
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres.clock import ServerClock
from tests.infra.mq.acting import done, ids, message, messages, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

HOUR = 3600.0
NEAR = 10.0
"""Tolerance in seconds, by which a step of an hour is recognized even on a busy machine."""


class Server:
    """A server connection whose clock is set by the test."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        self.slower = False
        self._start = time.time() - time.monotonic()

    def time(self) -> float:
        return self._start + time.monotonic() + self.ahead

    async def fetchrow(self, *_: object) -> tuple[float, bool]:
        return self.time(), self.slower


async def compared(clock: ServerClock, server: Server) -> float:
    """Compare the clocks; return how far the queue time is ahead of the server's."""
    await clock.compare(cast("Driver", server))
    return clock.time() - server.time()


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_step_of_the_local_clock_changes_no_due_time(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    clock, server = ServerClock(SystemClock()), Server(ahead=25.0)
    assert abs(await compared(clock, server)) < 1
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + step)
    assert abs(clock.time() - server.time()) < 1
    assert abs(await compared(clock, server)) < 1


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_every_process_follows_the_servers_clock(step: float) -> None:
    clock, server = ServerClock(SystemClock()), Server(ahead=0.0)
    await compared(clock, server)
    server.ahead += step
    assert abs(await compared(clock, server)) < 1


async def test_fake_clock_is_used_as_the_queue_time() -> None:
    fake = FakeClock()
    clock = ServerClock(fake)
    server: Any = Server(ahead=25.0)
    await clock.compare(server)
    assert clock.time() == fake.time()


async def set_server_clock(store: Store, ahead: float) -> None:
    """Set the server clock that the queue reads to `step` seconds ahead of the real one."""
    query = "SELECT pg_get_functiondef('beneath_time_1'::regproc)"
    [[definition]] = await store.server.fetch(query, database=store.database)
    present = r"clock_timestamp\(\)( \+ interval '[^']*')?"
    moved = f"clock_timestamp() + interval '{ahead} seconds'"
    await store.server.execute(re.sub(present, moved, definition), store.database)


async def compare(queue: SqlQueue) -> None:
    """Compare the clocks now, instead of ten seconds after the last comparison."""
    clock = queue_dialect(queue).clock
    assert isinstance(clock, ServerClock)
    await queue_dialect(queue)._connections.run(clock.compare, writing=False)


async def test_server_clock_set_back_neither_stalls_nor_advances_deliveries(server: PostgresServer) -> None:
    async with new_store(server) as store:
        old, _ = await store.open()
        await old.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
        await old.publish(messages(3, keys=3))
        await old.publish([message("later", due_at=old.time() + 1.0)])
        due = time.monotonic() + 1.0
        await set_server_clock(store, -HOUR)
        new, _ = await store.open()
        for queue in (old, new):
            await compare(queue)
            assert abs(queue.time() - time.time()) < NEAR
        await new.publish([message("new")])
        worker = await consumer(new)
        handled: list[str] = []
        async with asyncio.timeout(20):
            while len(handled) < 10:
                claims = await worker.fetch({WORK: 10, MAIL: 10}, wait=1)
                assert "later" not in ids(claims) or time.monotonic() >= due - 0.1
                handled += ids(claims)
                await worker.settle(done(claims))
        assert sorted(handled) == sorted(["m0", "m1", "m2", "later", "new"] * 2)


async def test_server_clock_set_back_and_forward_again_advances_no_delivery(server: PostgresServer) -> None:
    async with new_store(server) as store:
        first, _ = await store.open()
        for ahead in (0, -HOUR, 0, -HOUR, -2 * HOUR, -HOUR, 0):
            await set_server_clock(store, ahead)
            await compare(first)
            assert abs(first.time() - time.time()) < NEAR
        second, _ = await store.open()
        assert abs(second.time() - time.time()) < NEAR


async def test_queue_time_runs_a_tenth_slower_until_it_agrees_with_the_server(server: PostgresServer) -> None:
    async with new_store(server) as store:
        start = time.time()

        async def reached(ahead: float) -> tuple[object, bool]:
            await set_server_clock(store, ahead)
            query = "SELECT reached, slower FROM beneath_time_1('-infinity', 'infinity')"
            [[seconds, slower]] = await server.fetch(query, database=store.database)
            return seconds - start, slower

        assert await reached(0) == (pytest.approx(0, abs=NEAR), False)
        assert await reached(-1000) == (pytest.approx(0, abs=NEAR), True)
        assert await reached(0) == (pytest.approx(900, abs=NEAR), True)
        assert await reached(9000) == (pytest.approx(9000, abs=NEAR), False)


async def test_process_uses_the_slower_time_between_two_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock, server = ServerClock(SystemClock()), Server(ahead=0.0)
    server.slower = True
    await compared(clock, server)
    before = clock.time()
    now += 10.0
    assert clock.time() - before == pytest.approx(9.0)
