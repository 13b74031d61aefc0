"""Leases: which workers are considered dead, and which only could not reach the server."""

import asyncio
import contextlib
import threading
import time

import pytest

from infra.clock import FakeClock
from infra.mq import QueueUnavailable
from tests import servers
from tests.contract.acting import consumer, end, fetch, ids, message, subscription
from tests.infra.redis.commands import command
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

TESTING = {"broker_time": False, "lease": 10.0}


async def test_worker_takes_over_only_after_holding_its_own_lease_for_as_long(opened: Open, clock: FakeClock) -> None:
    queue = await opened(clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    victim = await consumer(queue)
    await queue.publish([message("a")])
    await fetch(victim)
    await clock.advance(20)
    rescuer = await consumer(queue)
    assert await rescuer.recover() == 0
    for _ in range(2):
        await clock.advance(5)
        assert rescuer.renew()
    assert await rescuer.recover() == 1


async def test_takeover_waits_a_fifth_of_a_lease_beyond_the_expiry(opened: Open, clock: FakeClock) -> None:
    queue = await opened(clock=clock, **TESTING)
    await queue.declare([subscription("line", ordered=True)], [])
    victim, rescuer = await consumer(queue, "line"), await consumer(queue, "line")
    await queue.publish([message("a")])
    await fetch(victim, "line")
    for _ in range(3):
        await clock.advance(3.99)
        assert rescuer.renew()
        assert await rescuer.recover() == 0
    await clock.advance(0.03)
    assert victim.valid_until <= clock.monotonic() - 2
    assert await rescuer.recover() == 1
    assert not victim.renew()
    assert victim.lost


async def test_claims_of_an_abandoned_lease_are_taken_over_at_once(opened: Open, clock: FakeClock) -> None:
    queue = await opened(clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    victim = await consumer(queue)
    await queue.publish([message("a")])
    await fetch(victim)
    victim.abandon()
    assert await (await consumer(queue)).recover() == 1


async def test_outage_longer_than_every_lease_causes_no_takeover(opened: Open, proxy: Proxy, clock: FakeClock) -> None:
    queue = await opened(proxy.url, clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    workers = [await consumer(queue), await consumer(queue)]
    await queue.publish([message("a"), message("b")])
    held = [await fetch(it, limit=1) for it in workers]
    for _ in range(2):
        await clock.advance(6)
        assert all([await asyncio.to_thread(it.renew) for it in workers])
    await clock.advance(5)
    proxy.cut_all(reachable=False)
    for _ in range(8):
        await clock.advance(3)
        for worker in workers:
            with pytest.raises(QueueUnavailable):
                await asyncio.to_thread(worker.renew)
    proxy.allow()
    assert [it.lost for it in workers] == [False, False]
    assert await asyncio.to_thread(workers[0].renew)
    assert await workers[0].recover() == 0
    assert await asyncio.to_thread(workers[1].renew)
    for _ in range(4):
        await clock.advance(3)
        assert all([await asyncio.to_thread(it.renew) for it in workers])
    assert await workers[0].recover() == 0
    for worker, claims in zip(workers, held, strict=True):
        assert await worker.settle([end(it) for it in claims]) == []


async def test_disconnected_worker_knows_that_its_lease_expired_before_the_takeover(
    opened: Open, proxy: Proxy, clock: FakeClock
) -> None:
    queue, elsewhere = await opened(proxy.url, clock=clock, **TESTING), await opened(clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    victim, rescuer = await consumer(queue), await consumer(elsewhere)
    await queue.publish([message("a")])
    [claim] = await fetch(victim)
    proxy.cut_all(reachable=False)
    recovered = 0
    while not recovered:
        assert clock.monotonic() < 30
        await clock.advance(1)
        with pytest.raises(QueueUnavailable):
            await asyncio.to_thread(victim.renew)
        assert rescuer.renew()
        recovered = await rescuer.recover()
    assert victim.valid_until <= clock.monotonic() - 2
    proxy.allow()
    assert not await asyncio.to_thread(victim.renew)
    assert victim.lost
    assert ids(await fetch(rescuer)) == ["a"]
    assert await victim.settle([end(claim)]) == []


async def test_reconnected_worker_gives_other_workers_time_to_renew(
    opened: Open, proxy: Proxy, clock: FakeClock
) -> None:
    queue, elsewhere = await opened(clock=clock, **TESTING), await opened(proxy.url, clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    victim, rescuer = await consumer(queue), await consumer(elsewhere)
    await queue.publish([message("a")])
    await fetch(victim)
    for _ in range(3):
        await clock.advance(4.5)
        assert await asyncio.to_thread(rescuer.renew)
    # The server may have been restarted with leases from long ago.
    proxy.cut_all()
    await asyncio.sleep(0.1)
    assert await rescuer.recover() == 0
    # The first renewal fails, so that a whole lease counts from the second.
    for _ in range(5):
        await clock.advance(4)
        with contextlib.suppress(QueueUnavailable):
            await asyncio.to_thread(rescuer.renew)
    assert await rescuer.recover() == 1


async def test_worker_without_permission_to_subscribe_still_takes_over(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    await command(server, "ACL SETUSER deaf on nopass ~* &* +@all -subscribe")
    url = server.url.replace("redis://", "redis://deaf:any@")
    queue = await opened(url, lease=0.2, takeover_patience=1.5, connect_timeout=0.1)
    await queue.declare([subscription()], [])
    victim = await consumer(queue)
    await queue.publish([message("a")])
    await fetch(victim)
    rescuer = await consumer(queue)
    async with asyncio.timeout(10):
        while not await rescuer.recover():
            await asyncio.to_thread(rescuer.renew)


async def test_worker_paused_longer_than_its_lease_continues_without_a_takeover(opened: Open, clock: FakeClock) -> None:
    queue = await opened(clock=clock, **TESTING)
    await queue.declare([subscription("line", ordered=True)], [])
    worker = await consumer(queue, "line")
    await queue.publish([message("a")])
    [claim] = await fetch(worker, "line")
    await clock.advance(100)
    assert worker.valid_until < clock.monotonic()
    assert worker.renew()
    assert worker.valid_until == clock.monotonic() + 10
    assert await worker.settle([end(claim)]) == []


async def test_kept_claim_is_renewed_by_a_thread_after_close(opened: Open) -> None:
    queue = await opened(lease=0.6, takeover_patience=0.0)
    await queue.declare([subscription()], [])
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish([message("stuck"), message("free")])
    stuck, _ = await fetch(worker)
    worker.keep(stuck)
    await worker.close()
    assert ids(await fetch(other)) == ["free"]
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert await other.recover() == 0
        assert await asyncio.to_thread(other.renew)
        await asyncio.sleep(0.1)
    await queue.close()
    elsewhere = await opened(lease=0.6, takeover_patience=0.0)
    assert await (await consumer(elsewhere)).recover() >= 1
    for thread in threading.enumerate():
        if thread.name == "redis lease":
            thread.join(2)
            assert not thread.is_alive()
