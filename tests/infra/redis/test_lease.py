"""Who is dead, and who only could not reach the server."""

import asyncio
import threading
import time

import pytest

from infra.clock import FakeClock
from infra.mq import QueueUnavailable
from tests.contract.acting import consumer, end, fetch, ids, message, subscription
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

TESTING = {"broker_time": False, "lease": 10.0}


async def test_nobody_takes_over_before_it_has_held_its_own_lease_for_as_long(opened: Open, clock: FakeClock) -> None:
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


async def test_who_gave_up_its_lease_is_taken_over_from_at_once(opened: Open, clock: FakeClock) -> None:
    queue = await opened(clock=clock, **TESTING)
    await queue.declare([subscription()], [])
    victim = await consumer(queue)
    await queue.publish([message("a")])
    await fetch(victim)
    victim.abandon()
    assert await (await consumer(queue)).recover() == 1


async def test_an_outage_longer_than_every_lease_costs_nobody_its_claims(
    opened: Open, proxy: Proxy, clock: FakeClock
) -> None:
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


async def test_an_outage_without_end_costs_the_lease(opened: Open, proxy: Proxy, clock: FakeClock) -> None:
    queue = await opened(proxy.url, clock=clock, outage=60.0, **TESTING)
    worker = await consumer(queue)
    proxy.cut_all(reachable=False)
    lost_after = 0.0
    while not worker.lost:
        await clock.advance(3)
        lost_after += 3
        if not worker.lost:
            with pytest.raises(QueueUnavailable):
                await asyncio.to_thread(worker.renew)
    assert 70 <= lost_after <= 73


async def test_a_worker_that_stood_still_longer_than_its_lease_is_lost_when_it_goes_on(
    opened: Open, clock: FakeClock
) -> None:
    queue = await opened(clock=clock, **TESTING)
    worker = await consumer(queue)
    await clock.advance(10)
    assert worker.lost
    assert not worker.renew()


async def test_a_kept_claim_is_held_by_a_thread_after_its_consumer_left(opened: Open) -> None:
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
