"""Lost answers: no message and no settlement is lost with an answer."""

import asyncio

import pytest

from infra.mq import Outcome, QueueIndeterminate, QueueUnavailable
from tests.contract.acting import WORK, consumer, counters, end, fetch, ids, message, subscription
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
CLAIM, SETTLE, PUBLISH = b":idle", b":dead\r\n", b":dedupe"
"""Keys by which the proxy recognizes the requests of each script."""


async def test_a_publish_without_an_answer_is_indeterminate_and_accepted_once(opened: Open, proxy: Proxy) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription()], [])
    proxy.lose_answer_to(PUBLISH)
    with pytest.raises(QueueIndeterminate):
        await queue.publish([message("a", dedupe=True)])
    await queue.publish([message("a", dedupe=True), message("b", dedupe=True)])
    assert ids(await fetch(await consumer(queue))) == ["a", "b"]
    assert proxy.cut == 1


@BOTH
async def test_claims_without_an_answer_are_returned_by_the_next_fetch(
    opened: Open, proxy: Proxy, ordered: bool
) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="a")])
    known = await fetch(worker)
    await queue.publish([message("b", key="b"), message("c", key="b")])
    proxy.lose_answer_to(CLAIM)
    with pytest.raises(QueueUnavailable):
        await fetch(worker)
    again = await fetch(worker)
    assert ids(again) == ["b", "c"]
    settlements = [end(it, nth=nth) for it in [*known, *again] for nth in range(len(it.deliveries))]
    assert await worker.settle(settlements) == []
    assert await fetch(worker) == []
    assert (await queue.stats())[0].in_flight == 0


@BOTH
@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.RETRY, Outcome.RELEASE, Outcome.DEAD])
async def test_repeated_settlement_after_a_lost_answer_has_no_effect(
    opened: Open, proxy: Proxy, ordered: bool, outcome: Outcome
) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription(ordered=ordered)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    [claim] = await fetch(worker)
    settlement = end(claim, outcome, error="no")
    proxy.lose_answer_to(SETTLE)
    with pytest.raises(QueueUnavailable):
        await worker.settle([settlement])
    # The delivery is claimed again by now: the repeated settlement must not end this claim.
    again = await fetch(worker)
    comes_again = outcome in {Outcome.RETRY, Outcome.RELEASE}
    told = [counters(it) for each in again for it in each.deliveries]
    assert told == ([(int(outcome is Outcome.RETRY), 0, 0, 0)] if comes_again else [])
    is_fenced = ordered or outcome is not Outcome.DONE
    assert await worker.settle([settlement]) == ([settlement] if is_fenced else [])
    [now] = await queue.stats()
    assert (now.ready, now.retrying) == (0, 0)
    assert (now.in_flight, now.dead) == (int(comes_again), int(outcome is Outcome.DEAD))
    assert await worker.settle([end(it) for it in again]) == []
    assert await fetch(worker) == []


async def test_message_handed_over_to_a_disconnected_worker_is_recovered(opened: Open, proxy: Proxy) -> None:
    queue, publisher = await opened(proxy.url), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    for number in range(20):
        fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=5))
        await asyncio.sleep(0.01)
        await publisher.publish([message(str(number))])
        if number % 2:
            proxy.cut_all()
        try:
            claims = await fetching
        except QueueUnavailable:
            claims = await worker.fetch({WORK: 1}, wait=5)
        while not claims:
            claims = await worker.fetch({WORK: 1}, wait=5)
        assert ids(claims) == [str(number)]
        while True:
            try:
                await worker.settle([end(it) for it in claims])
                break
            except QueueUnavailable:
                continue
    assert await fetch(worker) == []


async def test_message_handed_over_without_a_recipient_is_stored_once(opened: Open, proxy: Proxy) -> None:
    queue, publisher = await opened(proxy.url), await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=60))
    await asyncio.sleep(0.1)
    proxy.cut_all(reachable=False)
    await asyncio.wait([fetching])
    # The server notices the loss of the subscriber only once the connection has ended there, too.
    await asyncio.sleep(0.1)
    await publisher.publish([message("a")])
    [now] = await publisher.stats()
    assert (now.ready, now.in_flight) == (1, 0)
    assert await publisher.retire(WORK, event="Happened", backlog="dead") == 1
    assert [it.message_id for it in await publisher.dead_letters()] == ["a"]
    with pytest.raises(QueueUnavailable):
        await fetching


async def test_answer_of_a_cancelled_call_is_not_given_to_the_next_call(opened: Open) -> None:
    queue = await opened()
    await queue.declare([subscription()], ["News"])
    for _ in range(30):
        asking = asyncio.ensure_future(queue.stats())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        assert (await queue.registry()).broadcast == {"News"}


async def test_cancelled_publish_does_not_affect_concurrent_publishes(opened: Open) -> None:
    queue = await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    calls = [asyncio.ensure_future(queue.publish([message(f"{number:02}")])) for number in range(40)]
    await asyncio.sleep(0)
    for call in calls[1::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [it for it in results[2::2] if it is not None] == []
    came = ids(await fetch(worker))
    assert {f"{number:02}" for number in range(2, 40, 2)} <= set(came)
    assert len(came) == len(set(came))


async def test_every_caller_of_a_failed_batch_gets_a_separate_error(opened: Open, proxy: Proxy) -> None:
    queue = await opened(proxy.url)
    await queue.declare([subscription()], [])
    await queue.publish([message("warm up")])
    proxy.cut_all(reachable=False)
    calls = [queue.publish([message(str(number))]) for number in range(5)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(it, QueueIndeterminate | QueueUnavailable) for it in errors)
    assert len({id(it) for it in errors}) == 5
    proxy.allow()
    async with asyncio.timeout(10):
        while True:
            try:
                await queue.publish([message("later")])
                break
            except (QueueUnavailable, QueueIndeterminate):
                await asyncio.sleep(0.05)
