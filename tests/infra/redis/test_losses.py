"""Lost data: after a flush or a lost log tail, processes restore the registry and notice lost claims."""

import asyncio
from collections.abc import Iterator

import pytest

from infra.mq import Claim, Consumer, Outcome, QueueClosed, QueueError
from infra.mq.drivers.redis import RedisQueue
from infra.mq.drivers.redis.keys import owner_name
from tests import servers
from tests.contract.acting import WORK, consumer, counters, end, fetch, ids, message, subscription
from tests.infra.redis.commands import command, eventually, flush
from tests.infra.redis.conftest import Open

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@pytest.fixture
def durable() -> Iterator[servers.RedisServer]:
    server = servers.new_server(servers.any_kind(), *servers.DURABLE)
    yield server
    server.kill()


async def names_of(queue: RedisQueue) -> list[str]:
    return [it.name for it in await queue.stats()]


async def is_lost(worker: Consumer) -> bool:
    """Renew and recover as a session with busy slots does, until the worker notices the loss of its lease."""
    async with asyncio.timeout(10):
        while not worker.lost:
            try:
                await asyncio.to_thread(worker.renew)
                await worker.recover()
            except QueueClosed:
                break
            except QueueError:
                await asyncio.sleep(0.02)
    return worker.lost


async def test_every_process_restores_its_declarations_after_a_flush(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    first, second, third = [await opened(server.url) for _ in range(3)]
    await first.declare([subscription("audit")], ["News"])
    await second.declare([subscription("audit"), subscription("mail", ordered=True)], ["Weather"])
    await third.declare([subscription("late", events=("Else",))], [])
    workers = [await consumer(second, "audit", "mail"), await consumer(third, "late")]
    await flush(server)
    await first.publish([message("first", key="k")])
    for queue, declared in ((second, "mail"), (third, "late")):
        # Every process repeats its declarations periodically.
        await queue.declare([subscription(declared, ordered=declared == "mail", events=("Happened", "Else"))], [])
    assert await names_of(first) == ["audit", "late", "mail"]
    assert set((await first.registry()).broadcast) == {"News", "Weather"}
    for worker in workers:
        assert await is_lost(worker)
    await first.publish([message("second", key="k")])
    worker = await consumer(second, "audit", "mail")
    assert ids(await fetch(worker, "audit")) == ["first", "second"]
    assert ids(await fetch(worker, "mail")) == ["second"]
    assert [it.workers for it in await first.stats()] == [1, 0, 1]


async def test_publisher_restores_its_declarations_after_another_publisher_restored_its_own(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    first, second = await opened(server.url), await opened(server.url)
    await first.declare([subscription("audit")], [])
    await second.declare([subscription("mail")], [])
    await first.publish([message("lost")])
    await flush(server)
    await first.publish([message("first")])
    await second.publish([message("second")])
    worker = await consumer(second, "audit", "mail")
    assert ids(await fetch(worker, "audit")) == ["first", "second"]
    assert ids(await fetch(worker, "mail")) == ["second"]


async def test_retired_subscription_or_event_is_not_restored(opened: Open) -> None:
    operator, queue = await opened(), await opened()
    await queue.declare([subscription("gone"), subscription("stays", events=("Happened", "Else"))], [])
    await operator.retire("gone")
    await operator.retire("stays", event="Else")
    await operator.pause("stays")
    await queue.publish([message("a"), message("b", event="Else")])
    assert await names_of(queue) == ["stays"]
    assert set((await queue.registry()).routed) == {"Happened"}
    await queue.declare([subscription("stays", events=("Happened", "Else"))], [])
    assert set((await queue.registry()).routed) == {"Happened", "Else"}


async def test_registry_that_lost_its_last_changes_is_restored(opened: Open, durable: servers.RedisServer) -> None:
    queue, elsewhere = await opened(durable.url), await opened(durable.url)
    await queue.declare([subscription("kept")], [])
    tail = servers.LogTail(durable)
    await elsewhere.declare([subscription("new"), subscription("kept", events=("Happened", "Else"))], ["News"])
    await elsewhere.publish([message("before")])
    tail.lose()
    await eventually(lambda: elsewhere.publish([message("a"), message("b", event="Else")]))
    assert await names_of(queue) == ["kept", "new"]
    worker = await consumer(queue, "kept", "new")
    assert ids(await fetch(worker, "kept")) == ["a", "b"]
    assert ids(await fetch(worker, "new")) == ["a"]


@BOTH
async def test_worker_whose_claims_vanished_loses_its_lease(
    opened: Open, durable: servers.RedisServer, ordered: bool
) -> None:
    queue, elsewhere = await opened(durable.url), await opened(durable.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker, other = await consumer(queue), await consumer(elsewhere)
    await queue.publish([message("a", key="a"), message("b", key="b")])
    tail = servers.LogTail(durable)
    claims = await fetch(worker)
    assert ids(claims) == ["a", "b"]
    tail.lose()
    assert ids(await eventually(lambda: fetch(other))) == ["a", "b"]
    assert await is_lost(worker)
    with pytest.raises(QueueClosed):
        await fetch(worker)
    if ordered:
        ends = [end(it, Outcome.RETRY) for it in claims]
        assert await worker.settle(ends) == ends
    assert not await is_lost_soon(other)


async def is_lost_soon(worker: Consumer) -> bool:
    await worker.recover()
    return worker.lost


@BOTH
async def test_briefly_disconnected_worker_keeps_its_claims(
    opened: Open, durable: servers.RedisServer, ordered: bool
) -> None:
    queue = await opened(durable.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message(each, key=each) for each in "abcd"])
    claims = await fetch(worker)
    await worker.settle([end(claims[0]), end(claims[1], Outcome.RELEASE)])
    again = await fetch(worker)
    durable.kill()
    durable.start()
    await eventually(worker.recover)
    assert await eventually(lambda: fetch(worker)) == []
    assert not worker.lost
    assert await worker.settle([end(it) for it in [*claims[2:], *again]]) == []


async def test_lost_settlement_of_a_claim_is_repeated(opened: Open, durable: servers.RedisServer) -> None:
    queue = await opened(durable.url)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    await queue.publish([message("a")])
    [claim] = await fetch(worker)
    tail = servers.LogTail(durable)
    await worker.settle([end(claim, Outcome.RETRY, error="no")])
    tail.lose()
    [found] = await eventually(lambda: worker.fetch({WORK: 1}, wait=1))
    assert await worker.settle([end(found)]) == []
    assert [(it.ready, it.in_flight) for it in await queue.stats()] == [(0, 0)]


@BOTH
async def test_claim_without_a_registered_worker_is_recovered(opened: Open, ordered: bool) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url, takeover_patience=0.0)
    await queue.declare([subscription("idle"), subscription(ordered=ordered)], [])
    await queue.publish([message(f"{it}", key=f"{it}") for it in range(500)])
    gone, worker = await consumer(queue), await consumer(queue)
    await fetch(gone, limit=500)
    await fetch(worker, limit=500)
    await command(server, f"ZREM {queue._core.keys.of('leases')} {owner_name(gone.info.id)}")
    async with asyncio.timeout(10):
        count = 0
        while count < 500:
            count += await worker.recover()
    assert counters((await fetch(worker))[0].deliveries[0]) == (0, 0, 1, 0)
    assert await worker.recover() == 0


@BOTH
async def test_worker_that_closes_after_a_lost_tail_releases_the_restored_claims(
    opened: Open, durable: servers.RedisServer, ordered: bool
) -> None:
    queue, elsewhere = await opened(durable.url), await opened(durable.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    [claim] = await fetch(worker)
    tail = servers.LogTail(durable)
    await worker.settle([end(claim, Outcome.RETRY, error="no")])
    tail.lose()
    await eventually(queue.dead_letters)
    await worker.close()
    [found] = await eventually(lambda: fetch_anew(elsewhere))
    assert counters(found.deliveries[0]) == (0, 0, 0, 0)


async def fetch_anew(queue: RedisQueue) -> list[Claim]:
    """Fetch as a new worker."""
    return await fetch(await consumer(queue))


@BOTH
async def test_worker_that_knows_a_later_claim_than_the_server_loses_its_lease(
    opened: Open, durable: servers.RedisServer, ordered: bool
) -> None:
    queue = await opened(durable.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    [claim] = await fetch(worker)
    tail = servers.LogTail(durable)
    await worker.settle([end(claim, Outcome.RETRY, error="no")])
    await fetch(worker)
    tail.lose()
    assert await is_lost(worker)
