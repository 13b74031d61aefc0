"""A fetch that is cancelled strands nothing, at whatever moment, while its consumer lives."""

import asyncio
import threading

import pytest

from infra.mq import QueueClosed, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import claiming, settling
from tests.infra.mq.acting import consumer, handle_all, messages

WANTS = {"work": 100, "mail": 100}


class Gate:
    """Holds what a claim took back until the test lets it go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken, self.go_on = threading.Event(), threading.Event()
        honest = claiming.claim

        def held(*args: object, **named: object) -> object:
            claims = honest(*args, **named)  # type: ignore[arg-type]  # handed on as it came
            self.taken.set()
            assert self.go_on.wait(5)
            return claims

        patch.setattr(claiming, "claim", held)


async def test_what_a_cancelled_fetch_claims_later_is_released(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5, keys=5))
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        assert await asyncio.to_thread(gate.taken.wait, 5)
        fetching.cancel()
        await asyncio.wait([fetching])
        gate.go_on.set()
    seen = 0
    async with asyncio.timeout(10):
        while seen < 10:
            seen += len(await handle_all(worker, WANTS))
            await asyncio.sleep(0)


async def test_release_that_fails_is_tried_again_by_the_next_fetch(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5))
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        assert await asyncio.to_thread(gate.taken.wait, 5)
        fetching.cancel()
        await asyncio.wait([fetching])

        def refuse(*_: object, **__: object) -> None:
            raise QueueUnavailable("not now")

        patch.setattr(settling, "settle", refuse)
        gate.go_on.set()
        async with asyncio.timeout(10):
            while not worker._unwanted:  # type: ignore[attr-defined]  # noqa: ASYNC110  # what it could not release
                await asyncio.sleep(0)
            with pytest.raises(QueueUnavailable):
                while True:
                    await worker.fetch(WANTS, wait=0)
    assert len(await handle_all(worker, WANTS)) == 10


async def test_closing_while_a_cancelled_fetch_claims_releases_it(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5))
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        assert await asyncio.to_thread(gate.taken.wait, 5)
        fetching.cancel()
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)
        gate.go_on.set()
        await asyncio.wait([fetching, closing])
    closing.result()
    assert len(await handle_all(await consumer(queue), WANTS)) == 10


async def test_claim_that_nobody_can_learn_of_costs_the_worker_its_lease(queue: SqlQueue) -> None:
    """Only as a dead worker's would what it took be found."""
    worker = await consumer(queue)
    worker._doubtful = True  # type: ignore[attr-defined]  # as after the end of all tasks, in a loop that goes on
    with pytest.raises(QueueClosed):
        await worker.fetch(WANTS, wait=0)
    assert worker.lost
