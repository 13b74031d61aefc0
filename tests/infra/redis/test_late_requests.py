"""Requests that the server executes after the sender's timeout have no harmful effect."""

import asyncio

import pytest

from infra.mq import Consumer, Outcome, QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable
from tests.contract.acting import WORK, consumer, counters, end, fetch, fetch_one, ids, message, stats, subscription
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
CLAIM, SETTLE, PUBLISH, ISOLATE, UNBLOCK = b":idle", b":dead\r\n", b":dedupe", b":past", b":deads"
"""Keys by which the proxy recognizes the requests of each script."""


@BOTH
async def test_late_claim_of_a_live_worker_claims_nothing(opened: Open, proxy: Proxy, ordered: bool) -> None:
    queue, elsewhere = await opened(proxy.url), await opened()
    await queue.declare([subscription(ordered=ordered)], [])
    worker, other = await consumer(queue), await consumer(elsewhere)
    await fetch(worker)
    proxy.hold_back(CLAIM)
    with pytest.raises(QueueUnavailable):
        await fetch(worker)
    assert await fetch(worker) == []
    await queue.publish([message("a", key="k")])
    await proxy.deliver_late()
    assert (await stats(queue)).in_flight == 0
    assert ids(await fetch(other)) == ["a"]


@BOTH
async def test_late_claim_before_the_next_fetch_is_returned_by_that_fetch(
    opened: Open, proxy: Proxy, ordered: bool
) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await fetch(worker)
    await queue.publish([message("a", key="k")])
    proxy.hold_back(CLAIM)
    with pytest.raises(QueueUnavailable):
        await fetch(worker)
    await proxy.deliver_late()
    assert (await stats(queue)).in_flight == 1
    [claim] = await fetch(worker)
    assert await worker.settle([end(claim)]) == []
    assert await fetch(worker) == []


@BOTH
@pytest.mark.parametrize("keeps", [False, True])
async def test_late_claim_of_a_closed_worker_claims_nothing(
    opened: Open, proxy: Proxy, ordered: bool, keeps: bool
) -> None:
    queue, elsewhere = await opened(proxy.url), await opened()
    await queue.declare([subscription(ordered=ordered), subscription("other")], [])
    worker = await consumer(queue, WORK, "other")
    await queue.publish([message("kept", key="kept")])
    [stuck] = await fetch(worker, "other")
    [first] = await fetch(worker)
    await worker.settle([end(first)])
    proxy.hold_back(CLAIM)
    with pytest.raises(QueueUnavailable):
        await fetch(worker)
    if keeps:
        worker.keep(stuck)
    await worker.close()
    await queue.publish([message("a", key="k")])
    await proxy.deliver_late()
    assert (await stats(queue)).in_flight == 0
    assert (await stats(queue, "other")).in_flight == int(keeps)
    assert ids(await fetch(await consumer(elsewhere))) == ["a"]


@pytest.mark.parametrize("fresh", [False, True], ids=["id of the caller", "id of the bus"])
@pytest.mark.parametrize("count", [1, 3])
async def test_late_publish_after_its_retry_is_dropped(opened: Open, proxy: Proxy, fresh: bool, count: int) -> None:
    queue, elsewhere = await opened(proxy.url), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(elsewhere)
    await queue.publish([message("warm up", dedupe=True)])
    await queue.publish([message("warm up 2", dedupe=True), message("warm up 3", dedupe=True)])
    proxy.hold_back(PUBLISH)
    with pytest.raises(QueueIndeterminate):
        await queue.publish([message(f"{it}", dedupe=True, fresh=fresh) for it in range(count)])
    await elsewhere.publish([message(f"{it}", dedupe=True) for it in range(count)])
    await proxy.deliver_late()
    assert ids(await fetch(worker))[3:] == [f"{it}" for it in range(count)]


@BOTH
@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.RELEASE, Outcome.PARK, Outcome.DEAD])
async def test_late_settlement_does_not_end_the_next_claim(
    opened: Open, proxy: Proxy, ordered: bool, outcome: Outcome
) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("warm up", key="k"), message("a", key="k")])
    first = await fetch(worker, limit=1)
    await worker.settle([end(it, nth=nth) for it in first for nth in range(len(it.deliveries))][:1])
    if ordered:
        await worker.close()
        worker = await consumer(queue)
    claim = await fetch_one(worker)
    proxy.hold_back(SETTLE)
    with pytest.raises(QueueUnavailable):
        await worker.settle([end(claim, outcome, error="first")])
    await worker.settle([end(claim, Outcome.RETRY, error="first")])
    second = await fetch_one(worker)
    assert second.fence > claim.fence
    await proxy.deliver_late()
    now = await stats(queue)
    assert (now.in_flight, now.parked, now.dead) == (1, 0, 0)
    assert counters(second.deliveries[0]) == (1, 0, 0, 0)
    assert await worker.settle([end(second)]) == []


@BOTH
async def test_late_isolation_does_not_mark_the_next_claim(opened: Open, proxy: Proxy, ordered: bool) -> None:
    queue, elsewhere = await opened(proxy.url), await opened(takeover_patience=0.0)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    claim = await fetch_one(worker)
    assert await worker.isolate(claim)
    proxy.hold_back(ISOLATE)
    with pytest.raises(QueueUnavailable):
        await worker.isolate(claim)
    await worker.settle([end(claim, Outcome.RELEASE)])
    await fetch_one(worker)
    await proxy.deliver_late()
    await asyncio.to_thread(worker.abandon)
    rescuer = await consumer(elsewhere)
    assert await rescuer.recover() == 1
    assert counters((await fetch_one(rescuer)).deliveries[0]) == (0, 0, 1, 0)


@pytest.mark.parametrize("skip", [False, True])
async def test_late_unblocking_does_not_change_keys_blocked_since(opened: Open, proxy: Proxy, skip: bool) -> None:
    queue, elsewhere = await opened(proxy.url), await opened()
    await queue.declare([subscription(ordered=True)], [])
    worker = await consumer(elsewhere)
    await queue.publish([message("warm up", key="w"), *[message(it, key="k") for it in "abc"]])
    for key in "wk":
        [claim] = await fetch(worker, limit=1)
        await worker.settle([end(claim, Outcome.BLOCK, error="no")])
        if key == "w":
            await queue.unblock(WORK, "w", skip=True)
    proxy.hold_back(UNBLOCK)
    with pytest.raises(QueueUnavailable):
        await queue.unblock(WORK, "k", skip=skip)
    await queue.unblock(WORK, "k", skip=True)
    await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, error="no")])
    await proxy.deliver_late()
    assert [it.message_id for it in await queue.dead_letters()] == ["warm up", "a"]
    assert (await stats(queue)).blocked == 2


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 13, 21])
async def test_message_handed_over_to_a_cancelled_fetch_is_returned_by_the_next(opened: Open, turns: int) -> None:
    queue, elsewhere = await opened(), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 5}, wait=5))
    await asyncio.sleep(0.02)
    publishing = asyncio.ensure_future(elsewhere.publish([message("a")]))
    for _ in range(turns):
        await asyncio.sleep(0)
    fetching.cancel()
    await asyncio.wait([fetching, publishing])
    found = [] if fetching.cancelled() else ids(fetching.result())
    async with asyncio.timeout(10):
        while not found:
            found = ids(await worker.fetch({WORK: 5}, wait=0.5))
    assert found == ["a"]


async def test_worker_cancelled_at_any_await_leaves_no_lost_claim(opened: Open) -> None:
    watching = await opened(takeover_patience=0.0)
    await watching.declare([subscription(), subscription("line", ordered=True)], [])
    await watching.publish([message(f"{it}", key=f"{it % 3}") for it in range(40)])
    for steps in range(2, 60, 3):
        queue = await opened()
        worker = await consumer(queue, WORK, "line")

        async def work(worker: Consumer = worker) -> None:
            while True:
                claims = await worker.fetch({WORK: 2, "line": 1}, wait=0.05)
                await worker.settle([end(it, Outcome.RELEASE) for it in claims])

        working = asyncio.ensure_future(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        try:
            await worker.close()
        except (QueueClosed, QueueError):
            pytest.fail("a live worker must be able to leave")
        assert [it.in_flight for it in await watching.stats()] == [0, 0]
