"""Recovery after faults of the server: restarts, silence, flushes and lost connections."""

import asyncio
from collections.abc import Iterator

import pytest

from infra.mq import QueueClosed, QueueError, QueueUnavailable
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, subscription
from tests.infra.redis.commands import command, eventually, flush
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

KIND = pytest.mark.parametrize("kind", servers.KINDS)


@pytest.fixture
def durable(kind: str) -> Iterator[servers.RedisServer]:
    server = servers.new_server(kind, *servers.DURABLE)
    yield server
    server.kill()


@KIND
async def test_killed_and_restarted_server_loses_no_messages_and_no_claims(
    opened: Open, durable: servers.RedisServer
) -> None:
    queue, elsewhere = await opened(durable.url), await opened(durable.url)
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    worker, other = await consumer(queue, WORK, "line"), await consumer(elsewhere)
    await queue.publish([message(str(number), key="k") for number in range(5)])
    held, [line] = await fetch(worker, limit=2), await fetch(worker, "line")
    durable.kill()
    durable.start()
    await eventually(lambda: queue.publish([message("later", key="k", dedupe=True)]))
    assert await eventually(other.recover) == 0
    assert await eventually(lambda: worker.settle([end(it) for it in held])) == []
    settlements = [end(line, nth=nth) for nth in range(5)]
    assert await worker.settle(settlements) == []
    assert ids(await eventually(lambda: fetch(other))) == ["2", "3", "4", "later"]
    assert ids(await eventually(lambda: fetch(worker, "line"))) == ["later"]


async def test_waiting_worker_is_notified_of_a_publish_after_a_restart(opened: Open) -> None:
    server = servers.new_server(servers.any_kind(), *servers.DURABLE)
    queue, elsewhere = await opened(server.url), await opened(server.url)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    assert await worker.fetch({WORK: 1}, wait=0.05) == []
    server.kill()
    server.start()
    await eventually(lambda: elsewhere.publish([message("a")]))
    assert ids(await eventually(lambda: worker.fetch({WORK: 1}, wait=5))) == ["a"]


async def test_silent_server_does_not_block_a_publisher(opened: Open, proxy: Proxy) -> None:
    queue = await opened(proxy.url, connect_timeout=0.2)
    await queue.declare([subscription()], [])
    proxy.silent = True
    proxy.cut_all()
    async with asyncio.timeout(10):
        with pytest.raises(QueueUnavailable, match=r"no answer within 0\.2 s"):
            await queue.publish([message("refused")])
        proxy.silent = False
        await eventually(lambda: queue.publish([message("a")]))


async def test_subscriber_of_a_silent_server_subscribes_again_after_recovery(opened: Open, proxy: Proxy) -> None:
    queue, elsewhere = await opened(proxy.url, connect_timeout=0.2, poll=60.0), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    assert await worker.fetch({WORK: 1}, wait=0.05) == []
    proxy.silent = True
    proxy.cut_all()
    async with asyncio.timeout(20):
        while not proxy.silenced:  # noqa: ASYNC110  # what is waited for happens on the wire
            await asyncio.sleep(0.01)
        proxy.silent = False
        assert await eventually(lambda: worker.fetch({WORK: 1}, wait=0.05)) == []
        waiting = asyncio.create_task(worker.fetch({WORK: 1}, wait=60))
        await asyncio.sleep(0.05)
        await elsewhere.publish([message("a")])
        assert ids(await waiting) == ["a"]


async def test_fetch_after_a_flush_restores_the_declarations_of_its_process(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue, publisher = await opened(server.url), await opened(server.url)
    await queue.declare([subscription(), subscription("line", ordered=True)], ["News"])
    worker = await consumer(queue, WORK, "line")
    await publisher.publish([message("lost")])
    await flush(server)
    with pytest.raises(QueueClosed):
        await eventually(lambda: fetch(worker))
    assert set((await publisher.registry()).routed) == {"Happened"}
    await publisher.publish([message("a")])
    later = await consumer(queue, WORK, "line")
    assert ids(await fetch(later)) == ["a"]
    assert ids(await fetch(later, "line")) == ["a"]


async def test_settlement_of_a_claim_from_before_a_flush_changes_nothing(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    stale = await consumer(queue)
    await queue.publish([message("lost")])
    [old] = await fetch(stale)
    await flush(server)
    await queue.publish([message("a")])
    assert await stale.settle([end(old)]) == []
    assert ids(await fetch(await consumer(queue))) == ["a"]


async def test_scripts_lost_by_the_server_are_loaded_again(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    await queue.publish([message("a")])
    await command(server, "SCRIPT FLUSH")
    await queue.publish([message("b")])
    assert worker.renew()
    assert ids(await fetch(worker)) == ["a", "b"]


async def test_a_receiver_reports_a_gap_after_the_connection_was_lost(opened: Open, proxy: Proxy) -> None:
    here, there = await opened(), await opened(proxy.url)
    receiver = await there.receiver(origin="there")
    await here.broadcast([b"one"], origin="here")
    assert await receiver.receive(1) == ([b"one"], False)
    proxy.cut_all(reachable=False)
    with pytest.raises(QueueError):
        await receiver.receive(0)
    await here.broadcast([b"two"], origin="here")
    proxy.allow()
    assert await eventually(lambda: receiver.receive(1)) == ([b"two"], True)
    assert await receiver.receive(0) == ([], False)


async def test_a_receiver_reports_a_gap_when_broadcasts_were_dropped_or_flushed(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    here, there = await opened(server.url), await opened(server.url)
    receiver = await there.receiver(origin="there")
    await here.broadcast([b"one"], origin="here")
    await flush(server)
    assert await receiver.receive(0) == ([], True)
    await here.broadcast([b"two"], origin="here")
    assert await receiver.receive(1) == ([b"two"], False)
    await here.broadcast([b"dropped"], origin="here")
    await command(server, "DEL {" + there._core.keys.namespace + ":0}:news")
    await here.broadcast([b"three"], origin="here")
    assert await receiver.receive(1) == ([b"three"], True)
