"""Processes that publish and handle on few keys without polling: no stranded delivery, and one order.

`BENEATH_TEST_SECONDS=600` sets the duration to ten minutes.
"""

import asyncio
import json
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from infra.db import Database
from tests.infra.mq.acting import subscription
from tests.infra.postgres.queues import MAIL, POST, WORK, Store, new_store
from tests.postgres_servers import PostgresServer

SECONDS = float(os.environ.get("BENEATH_TEST_SECONDS", "6"))
PATIENCE = 30.0
"""Seconds within which the queue must be empty after the last publish; longer means a stranded delivery."""


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@asynccontextmanager
async def process(role: str, url: str, seed: int) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "tests.infra.postgres.storm", role, url, str(seed)]
    child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=1 << 30)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def tell(child: Process, what: object) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(what).encode() + b"\n")
    await child.stdin.drain()


async def hear(child: Process) -> Any:  # noqa: ANN401  # whatever JSON can say
    assert child.stdout is not None
    line = await child.stdout.readline()
    assert line, f"a process has ended with {child.returncode}"
    return json.loads(line)


async def end(child: Process) -> Any:  # noqa: ANN401  # whatever JSON can say
    assert child.stdin is not None
    child.stdin.close()
    return await hear(child)


async def emptied(store: Store) -> float:
    """Wait until no delivery is left; return the seconds that it took."""
    began = time.monotonic()
    while left := await store.count("delivery"):
        assert time.monotonic() - began < PATIENCE, f"{left} deliveries are stranded"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def prepare(store: Store) -> None:
    queue, db = await store.open()
    subscriptions = [subscription(WORK), subscription(MAIL, ordered=True), subscription(POST, ordered=True)]
    await queue.declare(subscriptions, [])
    await make_rows(db)
    await queue.close()
    await db.close()


async def make_rows(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE thing (id INTEGER PRIMARY KEY, changes INTEGER NOT NULL)"))
        await tx.session.execute(text("INSERT INTO thing SELECT n, 0 FROM generate_series(1, 20) AS n"))


def check(accepted: list[tuple[str, str, float, float]], handled: list[tuple[str, str, int, str]]) -> None:
    """Check that each subscription handled each message once, and that the ordered ones agree on a valid order."""
    names = Counter(it[0] for it in accepted)
    orders: defaultdict[str, list[tuple[str, int, int, str]]] = defaultdict(list)
    for nth, (name, key, fence, id_) in enumerate(handled):
        orders[name].append((key, fence, nth, id_))
    for name in (WORK, MAIL, POST):
        assert Counter(it[-1] for it in orders[name]) == names, name
    mail, post = ([it[-1] for it in sorted(orders[name])] for name in (MAIL, POST))
    assert mail == post
    times = {it[0]: it[1:] for it in accepted}
    latest: dict[str, float] = {}
    for id_ in mail:
        key, began, returned = times[id_]
        latest[key] = max(latest.get(key, 0.0), began)
        assert returned >= latest[key], f"{id_} came after something that began when it had returned"


@pytest.mark.thorough
@pytest.mark.timeout(SECONDS * 2 + 120)
async def test_concurrent_transactions_of_processes_lose_nothing_and_keep_one_order(store: Store) -> None:
    await prepare(store)
    rng = random.Random(7)
    accepted: list[tuple[str, str, float, float]] = []
    failures: Counter[str] = Counter()
    slowest, rounds, deadline = 0.0, 0, time.monotonic() + SECONDS
    async with (
        process("worker", store.url, 1) as first,
        process("worker", store.url, 2) as second,
        process("publisher", store.url, 3) as third,
        process("publisher", store.url, 4) as fourth,
    ):
        assert [await hear(first), await hear(second)] == ["ready", "ready"]
        while time.monotonic() < deadline:
            rounds += 1
            seconds = rng.uniform(0.1, 3)
            for child in (third, fourth):
                await tell(child, seconds)
            for child in (third, fourth):
                said = await hear(child)
                accepted += [(*it,) for it in said["accepted"]]
                failures.update(said["failures"])
            slowest = max(slowest, await emptied(store))
        handled = [(*it,) for child in (first, second) for it in await end(child)]
    check(accepted, handled)
    assert "40P01" not in failures
    assert await store.count("mailbox", "due_at < extract(epoch FROM now())") == 0
    print(f"{len(accepted)} messages in {rounds} rounds, empty after {slowest:.2f} s at most; {dict(failures)}")  # noqa: T201
