"""The contract: closing a queue, its consumers and its receivers."""

import asyncio

import pytest

from infra.mq import MessageQueue, QueueClosed
from tests.contract.acting import ANSWER, consumer, drain, fetch, message, start, until_done
from tests.contract.harness import Harness, requires


async def test_queue_time_follows_its_clock_and_agrees_between_queues(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    before = queue.time()
    await harness.clock.advance(2.5)
    assert queue.time() - before == pytest.approx(2.5)
    assert queue.time() == pytest.approx(elsewhere.time())


async def test_closing_twice_does_nothing(queue: MessageQueue) -> None:
    await queue.close()
    await queue.close()


async def test_closed_queue_refuses_all_calls(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    await queue.close()
    for refused in (queue.publish([message("a")]), queue.cancel("a"), queue.stats(), queue.warnings(), consumer(queue)):
        with pytest.raises(QueueClosed):
            await refused


async def test_consumers_of_a_closed_queue_are_abandoned(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.close()
    assert worker.lost
    assert not worker.renew()
    with pytest.raises(QueueClosed):
        await fetch(worker)


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 50])
async def test_close_ends_the_wait_of_consumers_and_receivers(
    harness: Harness, queue: MessageQueue, turns: int
) -> None:
    """Both calls end at any stage: after a few iterations of the loop they may still be in their first request."""
    worker, receiver = await start(harness, queue), await queue.receiver(origin="here")
    fetching = asyncio.ensure_future(worker.fetch({"work": 1}, wait=9))
    receiving = asyncio.ensure_future(receiver.receive(9))
    await harness.clock.settle(turns)
    await queue.close()
    before = harness.clock.time()

    async def both() -> list[object]:
        return list(await asyncio.gather(fetching, receiving, return_exceptions=True))

    results = await until_done(harness, both(), step=0.5, answer=ANSWER)
    assert [type(it) for it in results] == [QueueClosed, QueueClosed]
    assert harness.clock.time() - before <= 2


@requires("multi_process")
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_kept_claim_can_be_recovered_once_its_queue_is_closed(harness: Harness, ordered: bool) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker, other = await start(harness, queue, ordered=ordered), await consumer(elsewhere)
    await queue.publish([message("a", key="k")])
    [claim] = await fetch(worker)
    worker.keep(claim)
    await worker.close()
    assert await other.recover() == 0
    await queue.close()
    assert await other.recover() == 1
    assert await drain(other) == ["a"]


@requires("multi_process")
async def test_claims_of_a_closed_queue_are_recovered_by_another_queue(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("b")])
    await fetch(worker, limit=1)
    await queue.close()
    other = await consumer(elsewhere)
    assert await other.recover() == 1
    assert sorted(await drain(other)) == ["a", "b"]
