"""A process of a bare client loop: what the same work costs without a bus.

A consumer takes 100 at a time, decodes, awaits a handler and deletes, in a loop without concurrency, retries or leases.
The loops on SQLite and PostgreSQL use the tables of this project's queue.
"""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bus.codec import Frame, decode_frame, encode_frame
from bus.events import EventType
from tests.bench import embedded, ours, postgres, redis
from tests.bench.ours import Event, Events
from tests.bench.protocol import TASKS, Job, Meter, Published, job, publish_at_rate

AT_ONCE = 100
CHANNEL = "bare"
GROUP, CONSUMER, STREAM = "w", "me", "bare"
POLL = 0.001
"""Seconds between two polls of an empty SQLite file."""

KIND = EventType(Event)


def body(sent: float = 0.0, n: int = 0) -> bytes:
    """Return a message as the bus would store it."""
    payload = KIND.encode(Event(sent=sent, n=n))
    return encode_frame(Frame(f"0193f0de-5bcd-7b3e-8000-{n:012}", "Event", 1, None, time.time(), {}, payload))


async def handle(message: bytes, meter: Meter) -> None:
    """Decode one message and await a handler."""
    event: Any = KIND.decode(decode_frame(message).payload, 1)
    await _handler(event, meter)


async def _handler(event: Event, meter: Meter) -> None:
    meter.handled(event.sent)


class RedisLoop:
    """XADD; XREADGROUP, XACK and XDEL."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._add = client.register_script(redis.ADD)

    @classmethod
    @asynccontextmanager
    async def opened(cls, work: Job) -> AsyncIterator["RedisLoop"]:
        async with Redis.from_url(work.url, protocol=2) as client:
            with contextlib.suppress(ResponseError):
                await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            yield cls(client)

    async def insert(self, bodies: list[bytes]) -> None:
        if len(bodies) == 1:
            await self._client.xadd(STREAM, {"b": bodies[0]})
        else:
            await self._add(keys=[STREAM], args=bodies)

    async def work(self, meter: Meter) -> None:
        while True:
            answer = await self._client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=AT_ONCE, block=5000)
            if not answer:
                continue
            [[_, entries]] = answer
            for _, fields in entries:
                await handle(fields[b"b"], meter)
            ids = [number for number, _ in entries]
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.xack(STREAM, GROUP, *ids)
                pipe.xdel(STREAM, *ids)
                await pipe.execute()


class PostgresLoop:
    """INSERT and NOTIFY in a transaction; UPDATE ... RETURNING, and DELETE."""

    def __init__(self, db: Any) -> None:  # noqa: ANN401  # asyncpg's
        self._db = db

    @classmethod
    @asynccontextmanager
    async def opened(cls, work: Job) -> AsyncIterator["PostgresLoop"]:
        async with ours.opened(work, Events(work.shape)):
            pass  # it has declared the subscription
        db = await asyncpg.connect(work.url)
        try:
            yield cls(db)
        finally:
            await db.close()

    async def insert(self, bodies: list[bytes]) -> None:
        async with self._db.transaction():
            ids = [f"message-{time.perf_counter_ns()}-{number}" for number in range(len(bodies))]
            await self._db.execute(postgres.INSERT, time.time(), ids, bodies)
            await self._db.execute(f"NOTIFY {CHANNEL}")

    async def work(self, meter: Meter) -> None:
        wanted = asyncio.Event()
        await self._db.add_listener(CHANNEL, lambda *_: wanted.set())
        subscription = await self._db.fetchval("SELECT id FROM beneath_subscription")
        while True:
            wanted.clear()
            rows = await self._db.fetch(postgres.CLAIM, subscription, time.time())
            for _, message in rows:
                await handle(message, meter)
            if rows:
                await self._db.execute(postgres.DELETE, [number for number, _ in rows])
            else:
                await wanted.wait()


class SqliteLoop:
    """BEGIN IMMEDIATE, INSERT, COMMIT; UPDATE ... RETURNING, and DELETE; in this thread, synchronous=FULL."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._number = time.time_ns()

    @classmethod
    @asynccontextmanager
    async def opened(cls, work: Job) -> AsyncIterator["SqliteLoop"]:
        async with ours.opened(work, Events(work.shape)):
            pass  # it has declared the subscription
        db = sqlite3.connect(work.url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
        db.execute("PRAGMA synchronous = FULL")
        with contextlib.closing(db):
            yield cls(db)

    async def insert(self, bodies: list[bytes]) -> None:
        now = time.time()
        rows = [(self._number + at, now, now, f"message-{self._number + at}", each) for at, each in enumerate(bodies)]
        self._number += len(bodies)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(embedded.INSERT, rows)
        self._db.execute("COMMIT")

    async def work(self, meter: Meter) -> None:
        (subscription,) = self._db.execute("SELECT id FROM beneath_subscription").fetchone()
        while True:
            self._db.execute("BEGIN IMMEDIATE")
            rows = self._db.execute(embedded.CLAIM, (subscription, time.time())).fetchall()
            self._db.execute("COMMIT")
            for _, message in rows:
                await handle(message, meter)
            if rows:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(embedded.DELETE, (json.dumps([number for number, _ in rows]),))
                self._db.execute("COMMIT")
            else:
                await asyncio.sleep(POLL)


Loop = RedisLoop | PostgresLoop | SqliteLoop


async def publish(work: Job, loop: Loop) -> None:
    """Publish one by one; or by 100, which is also what 100 tasks cost at best."""
    at_once = 1 if work.mode == "one" else TASKS
    batches = [[body(n=n) for n in range(at, at + at_once)] for at in range(0, work.count, at_once)]
    published = Published(work.count)
    for batch in batches:
        await loop.insert(batch)
    published.report()


async def pace(work: Job, loop: Loop) -> None:
    """Publish at the rate of the job, each with the time of its publish."""
    await publish_at_rate(work, lambda sent, n: loop.insert([body(sent, n)]))


async def run(work: Job) -> None:
    """Do the job of this process."""
    if work.role == "prepare":
        await ours.prepare(work)
        return
    kinds: dict[str, type[Loop]] = {"redis": RedisLoop, "postgresql": PostgresLoop, "sqlite": SqliteLoop}
    async with kinds[work.url.partition(":")[0]].opened(work) as loop:
        match work.role:
            case "publish":
                await publish(work, loop)
            case "pace":
                await pace(work, loop)
            case _:
                await loop.work(Meter(work.count))


if __name__ == "__main__":
    asyncio.run(run(job()))
