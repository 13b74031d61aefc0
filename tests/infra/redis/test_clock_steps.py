"""Clock steps of servers and processes: no early or stalled delivery, and no lease prolonged by the step."""

import asyncio
import time

import pytest

from infra.clock import FakeClock, SystemClock
from infra.mq import Outcome, QueueUnavailable
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, stats, subscription
from tests.infra.redis.conftest import Open

HOUR = 3600.0
STEPS = pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])


class SetClock(SystemClock):
    """The system clock, whose wall time a test can set."""

    def __init__(self) -> None:
        self.step = 0.0

    def time(self) -> float:
        return time.time() + self.step


class ServerClock(FakeClock):
    """A fake clock whose wall time, which the drivers use as the server's time, can be set separately."""

    step = 0.0

    def time(self) -> float:
        return super().time() + self.step


@STEPS
async def test_step_of_the_publishers_clock_changes_no_due_time(opened: Open, step: float) -> None:
    clock = SetClock()
    queue, elsewhere = await opened(clock=clock), await opened()
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    worker = await consumer(elsewhere, WORK, "line")
    clock.step = step
    due_at = queue.time() + 0.5
    assert due_at == pytest.approx(elsewhere.time() + 0.5, abs=0.4)
    await queue.publish([message("later", due_at=due_at)])
    await queue.publish([message("now")])
    assert ids(await worker.fetch({WORK: 5, "line": 5}, wait=0)) == ["now", "now"]
    came: list[str] = []
    async with asyncio.timeout(10):
        while len(came) < 1:
            came += ids(await worker.fetch({WORK: 5}, wait=5))
    assert elsewhere.time() >= due_at


@STEPS
async def test_time_of_a_server_never_reached_is_unknown(namespace: str, step: float) -> None:
    clock = SetClock()
    clock.step = step
    server = servers.new_server(servers.any_kind())
    queue = RedisQueue(server.url, clock=clock, namespace=namespace)
    server.kill()
    with pytest.raises(QueueUnavailable):
        await queue.open()
    with pytest.raises(QueueUnavailable, match="has not been reached, so its time is unknown"):
        queue.time()
    server.start()
    await queue.open()
    assert queue.time() == pytest.approx(time.time(), abs=60)
    await queue.close()
    server.kill()


@STEPS
async def test_worker_wakes_up_in_time_after_a_step_of_its_clock(opened: Open, step: float) -> None:
    clock = SetClock()
    queue, elsewhere = await opened(clock=clock, poll=30.0), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    await elsewhere.publish([message("later", due_at=elsewhere.time() + 1)])
    fetching = asyncio.ensure_future(worker.fetch({WORK: 5}, wait=20))
    await asyncio.sleep(0.1)
    clock.step = step
    async with asyncio.timeout(10):
        assert ids(await fetching) == ["later"]


async def test_server_clock_set_back_stalls_no_delivery(opened: Open) -> None:
    clock = ServerClock()
    queue = await opened(clock=clock, broker_time=False)
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    worker = await consumer(queue, WORK, "line")
    await queue.publish([message("a", key="a"), message("b", key="b")])
    for name in (WORK, "line"):
        first, second = await fetch(worker, name)
        await worker.settle([end(first, Outcome.RELEASE), end(second, Outcome.RETRY, delay=5)])
    clock.step = -HOUR
    for name in (WORK, "line"):
        assert ids(await fetch(worker, name)) == ["a"]
    await clock.advance(4.9)
    assert await fetch(worker) == []
    assert await fetch(worker, "line") == []
    # The queue time runs a tenth slower until the server's clock has caught up.
    await clock.advance(1)
    for name in (WORK, "line"):
        assert ids(await fetch(worker, name)) == ["b"]


async def test_queue_clock_converges_after_the_server_clock_was_set_back(opened: Open) -> None:
    clock = ServerClock()
    queue = await opened(clock=clock, broker_time=False)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    clock.step = -60
    # The queue time gains a tenth of 600 seconds.
    for _ in range(130):
        await clock.advance(5)
        assert worker.renew()
        await fetch(worker)
    due_at = clock.time() + 5
    await queue.publish([message("later", due_at=due_at)])
    await clock.advance(4.9)
    assert await fetch(worker) == []
    await clock.advance(0.2)
    assert ids(await fetch(worker)) == ["later"]


async def test_lease_expires_in_time_after_the_server_clock_was_set_back(opened: Open) -> None:
    clock = ServerClock()
    queue = await opened(clock=clock, broker_time=False, lease=10.0)
    await queue.declare([subscription()], [])
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish([message("a")])
    await fetch(victim)
    clock.step = -HOUR
    for _ in range(9):
        await clock.advance(3)
        assert rescuer.renew()
    assert await rescuer.recover() == 1


@STEPS
async def test_step_of_the_server_clock_causes_no_takeover_from_live_workers(opened: Open, step: float) -> None:
    clock = ServerClock()
    queue = await opened(clock=clock, broker_time=False, lease=10.0)
    await queue.declare([subscription()], [])
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish([message("a")])
    [claim] = await fetch(worker)
    for _ in range(5):
        await clock.advance(3)
        assert worker.renew()
        assert other.renew()
    clock.step = step
    assert await other.recover() == 0
    for _ in range(5):
        assert other.renew()
        assert await other.recover() == 0
        await clock.advance(1)
        assert worker.renew()
        assert await other.recover() == 0
        await clock.advance(2)
    assert await worker.settle([end(claim)]) == []
    assert (await stats(queue)).workers == 2


async def test_first_worker_after_an_outage_takes_over_no_claims(opened: Open) -> None:
    clock = ServerClock()
    queue = await opened(clock=clock, broker_time=False, lease=10.0)
    await queue.declare([subscription()], [])
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish([message("a")])
    [claim] = await fetch(worker)
    for _ in range(5):
        await clock.advance(3)
        assert worker.renew()
        assert other.renew()
    # The server stalls for 20 seconds within this request: no worker can renew its lease.
    await clock.advance(20)
    assert await other.recover() == 0
    assert other.renew()
    assert await other.recover() == 0
    assert worker.renew()
    assert await worker.settle([end(claim)]) == []
