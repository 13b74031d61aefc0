"""Data that the previous release stored, and its processes beside new ones during a deployment.

`earlier_release.json` contains every key of a namespace of such a process that was killed: strings are
bytes, a character each.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from infra.clock import FakeClock
from infra.mq import Consumer
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.contract.acting import consumer, counters, end, fetch, message, subscription
from tests.infra.redis.conftest import Open

KEPT = Path(__file__).with_name("earlier_release.json")
KILLED_AT = 1_795_872_103.0
VICTIM = "victim".ljust(72, ".")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(KILLED_AT + 30)


@pytest.fixture
async def client() -> AsyncIterator[redis.asyncio.Redis]:
    server = servers.new_server(servers.any_kind())
    async with redis.asyncio.Redis.from_url(server.url) as opened:
        for key, (kind, values) in json.loads(KEPT.read_text("utf-8")).items():
            await opened.execute_command(*command(key, kind, values))  # type: ignore[no-untyped-call]  # of the client
        yield opened
    server.kill()


@pytest.fixture
async def queue(opened: Open, client: redis.asyncio.Redis, clock: FakeClock) -> RedisQueue:
    where = client.connection_pool.connection_kwargs
    return await opened(
        f"redis://127.0.0.1:{where['port']}/0",
        namespace="earlier",
        clock=clock,
        broker_time=False,
        takeover_patience=0.0,
    )


def command(key: str, kind: str, values: list[Any]) -> list[bytes]:
    """Return the command that stores a key."""
    if kind == "stream":
        [[entry, *fields]] = values
        return [it.encode("latin-1") for it in ("XADD", key, entry, *fields)]
    name = {"hash": "HSET", "list": "RPUSH", "set": "SADD", "zset": "ZADD"}[kind]
    return [it.encode("latin-1") for it in (name, key, *values)]


async def everything(worker: Consumer, name: str) -> dict[str, tuple[int, int, int, int]]:
    """Fetch and acknowledge all due deliveries; return the counters of each message."""
    came: dict[str, tuple[int, int, int, int]] = {}
    while claims := await fetch(worker, name):
        came |= {it.message_id: counters(it) for claim in claims for it in claim.deliveries}
        ends = [end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))]
        assert await worker.settle(ends) == []
    return came


@pytest.mark.parametrize("name", ["work", "line"])
async def test_messages_stored_by_an_earlier_release_are_delivered(queue: RedisQueue, name: str) -> None:
    now = {it.name: it for it in await queue.stats()}[name]
    assert (now.dead, now.parked, now.scheduled, now.in_flight) == (1, 1, 1, 2)
    worker = await consumer(queue, "work", "line")
    assert await worker.recover() == 4
    assert await worker.unpark({name: ["Else"]}) == 1
    assert await queue.retry_dead([it.id for it in await queue.dead_letters(subscription=name)]) == 1
    if name == "line":
        assert now.blocked_keys == {"b": "blocked"}
        await queue.unblock("line", "b", skip=False)
    came = await everything(worker, name)
    assert came.pop("blocked", (0, 0, 0, 0)) == (0, 0, 0, 0)
    assert came == {
        "retried": (1, 0, 1, 0),
        "alone": (0, 0, 0, 1),
        "parked": (0, 0, 0, 0),
        "dead": (0, 0, 0, 0),
        "released": (0, 0, 0, 0),
        "waiting": (0, 0, 0, 0),
        "planned": (0, 0, 0, 0),
    }
    now = {it.name: it for it in await queue.stats()}[name]
    assert (now.ready, now.scheduled, now.in_flight, now.parked, now.blocked) == (0, 1, 0, 0, 0)


async def test_scheduled_message_of_an_earlier_release_can_be_cancelled(queue: RedisQueue) -> None:
    assert await queue.scheduled("far")
    assert await queue.cancel("far")
    assert [it.scheduled for it in await queue.stats()] == [0, 0]


async def test_id_accepted_by_an_earlier_release_is_a_duplicate(queue: RedisQueue, clock: FakeClock) -> None:
    worker = await consumer(queue)
    await everything(worker, "work")
    await queue.publish([message("waiting", dedupe=True)])
    await queue.publish([message("waiting", dedupe=True), message("new", dedupe=True)])
    await queue.publish([message("retried", dedupe=True), message("else", event="Else", dedupe=True)])
    assert [*await everything(worker, "work")] == ["new", "else"]
    await clock.advance(120)
    await queue.publish([message("waiting", dedupe=True)])
    assert [*await everything(worker, "work")] == ["waiting"]


async def test_id_accepted_beside_an_earlier_release_is_a_duplicate_there(
    queue: RedisQueue, client: redis.asyncio.Redis, clock: FakeClock
) -> None:
    older = "{earlier:0}:dedupe"
    declaring = asyncio.create_task(queue.declare([subscription("lone", events=["Lone"])], []))
    while not declaring.done():
        await clock.advance(1)
        await asyncio.sleep(0.01)
    await queue.publish([message("before", dedupe=True)])
    assert await client.zscore(older, "before") is None
    # Every publish of the earlier release lets the key expire some time later.
    await client.expire(older, 180)
    # Messages for unordered subscriptions alone have scripts of their own: for one message, and for several.
    for event in ("Happened", "Lone"):
        one, two, three = (message(f"{nth} {event}", event=event, dedupe=True) for nth in (1, 2, 3))
        await queue.publish([one])
        await queue.publish([one, two, three])
        assert None not in [await client.zscore(older, it.id) for it in (one, two, three)]
    assert 0 < await client.ttl(older) <= 180


async def test_cancelled_message_of_an_earlier_release_can_be_published_again(queue: RedisQueue) -> None:
    assert await queue.cancel("far")
    await queue.publish([message("far", dedupe=True)])
    assert "far" in await everything(await consumer(queue), "work")


async def test_live_worker_of_an_earlier_release_keeps_its_claims(
    queue: RedisQueue, client: redis.asyncio.Redis, clock: FakeClock
) -> None:
    worker = await consumer(queue, "work", "line")
    for _ in range(3):
        # The earlier `renew` writes only the lease, and nothing else that this release stores about workers.
        await client.zadd("{earlier:0}:leases", {VICTIM: (clock.time() + 10) * 1e6})
        assert await worker.recover() == 0
        await clock.advance(5)
        assert worker.renew()
    assert [it.in_flight for it in await queue.stats()] == [2, 2]
    assert [it.workers for it in await queue.stats()] == [2, 2]
    await clock.advance(30)
    assert await worker.recover() == 4


@pytest.mark.parametrize("backlog", ["dead", "discard"])
async def test_subscription_of_an_earlier_release_can_be_retired(
    queue: RedisQueue, client: redis.asyncio.Redis, backlog: str
) -> None:
    for name in ("work", "line"):
        waiting = 8 if name == "line" else 7
        assert await queue.retire(name, backlog=backlog) == waiting  # type: ignore[arg-type]  # of both kinds
        left = await queue.dead_letters(subscription=name)
        assert len(left) == (1 + waiting if backlog == "dead" else 1)
    assert [it async for it in client.scan_iter("{earlier:0}:s:*")] == []
    assert await client.exists("{earlier:0}:plans", "{earlier:0}:planned", "{earlier:0}:retiring") == 0
