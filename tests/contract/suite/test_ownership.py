"""The contract: a queue belongs to the event loop that opened it."""

import asyncio

import pytest

from infra.mq import MessageQueue, Outcome, QueueClosed, Settlement
from infra.ownership import WrongEventLoop
from tests.contract.acting import consumer, drain, message, start
from tests.contract.harness import Harness, requires
from tests.elsewhere import Work, in_fork, in_forked_coroutine, in_thread


def calls(queue: MessageQueue) -> list[Work]:
    """Return a call of every method that uses the queue."""
    return [
        queue.open,
        queue.close,
        queue.registry,
        queue.stats,
        queue.warnings,
        queue.dead_letters,
        lambda: queue.declare([], []),
        lambda: queue.publish([message("elsewhere")]),
        lambda: queue.broadcast([b"elsewhere"], origin="there"),
        lambda: queue.cancel("a"),
        lambda: queue.scheduled("a"),
        lambda: queue.receiver(origin="there"),
        lambda: consumer(queue, "elsewhere"),
        lambda: queue.dead_letter("1"),
        lambda: queue.retry_dead(["1"]),
        lambda: queue.discard_dead(["1"]),
        lambda: queue.pause("work"),
        lambda: queue.resume("work"),
        lambda: queue.unblock("work", "a", skip=False),
        lambda: queue.retire("work"),
    ]


async def test_use_in_another_event_loop_is_refused_at_once(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    for call in calls(queue):
        said = await in_thread(call)
        assert said.startswith("WrongEventLoop: "), said
        assert "was opened in another event loop" in said
        assert "asyncio.run_coroutine_threadsafe" in said
    await queue.publish([message("here")])
    assert await drain(worker) == ["here"]


async def test_use_in_a_forked_child_is_refused_at_once(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    for elsewhere in (in_fork, in_forked_coroutine):
        for call in (queue.open, lambda: queue.publish([message("elsewhere")]), queue.stats, queue.close):
            said = elsewhere(call)
            assert said.startswith("WrongEventLoop: "), said
            assert "was opened before this process was forked" in said
    await queue.publish([message("here")])
    assert await drain(worker) == ["here"]


@requires("multi_process")
async def test_consumer_in_another_event_loop_or_forked_child_is_refused_at_once(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("b")])
    (claim,) = await worker.fetch({"work": 1}, wait=0)
    uses: list[Work] = [
        lambda: worker.fetch({"work": 1}, wait=0),
        lambda: worker.settle([Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.DONE)]),
        worker.recover,
        lambda: worker.unpark({}),
    ]
    for use in uses:
        for said in (await in_thread(use), in_fork(use), in_forked_coroutine(use)):
            assert said.startswith("WrongEventLoop: "), said
    done = Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.DONE)
    assert await worker.settle([done]) == []
    assert await drain(worker) == ["b"]


async def test_a_closed_queue_belongs_to_no_event_loop(queue: MessageQueue) -> None:
    await queue.close()
    assert (await in_thread(queue.stats)).startswith("QueueClosed: ")
    with pytest.raises(QueueClosed):
        await queue.stats()


async def test_use_without_an_event_loop_is_refused(queue: MessageQueue) -> None:
    call = queue.stats()

    def step() -> None:
        call.send(None)

    with pytest.raises(WrongEventLoop, match="was used outside of its event loop; from a thread, hand the coroutine"):
        await asyncio.to_thread(step)
