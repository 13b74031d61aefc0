"""A fetch that is cancelled at any moment leaves no claim behind while its consumer lives."""

import asyncio
import threading
from typing import Any

import pytest

from infra.mq import Consumer, Outcome, QueueUnavailable, Settlement
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import claiming, settling
from infra.mq.drivers.sql.sqlite.writer import Writer
from tests.infra.mq.acting import consumer, handle_all, messages

WANTS = {"work": 100, "mail": 100}


class HeldClaim:
    """Holds the claims of a fetch in the writer's thread until the test releases them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken, self.go_on = threading.Event(), threading.Event()
        honest = claiming.claim

        def held(*args: object, **named: object) -> object:
            claims = honest(*args, **named)  # type: ignore[arg-type]  # passed on unchanged
            self.taken.set()
            assert self.go_on.wait(5)
            return claims

        patch.setattr(claiming, "claim", held)


async def cancel_fetch(worker: Consumer, patch: pytest.MonkeyPatch) -> HeldClaim:
    """Cancel a fetch after its claims are stored and before they are returned."""
    held = HeldClaim(patch)
    fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
    assert await asyncio.to_thread(held.taken.wait, 5)
    fetching.cancel()
    await asyncio.wait([fetching])
    return held


def refuse_settlements(patch: pytest.MonkeyPatch) -> list[object]:
    """Let every settlement fail; return the list of the refused calls."""
    refused: list[object] = []

    def refuse(*_: object, **__: object) -> None:
        refused.append(1)
        raise QueueUnavailable("not now")

    patch.setattr(settling, "settle", refuse)
    return refused


async def release_in_vain(held: HeldClaim, refused: list[object]) -> None:
    """Return the held claims, and wait until their release was refused."""
    held.go_on.set()
    async with asyncio.timeout(10):
        while not refused:  # noqa: ASYNC110  # the writer releases claims beside this task
            await asyncio.sleep(0)


async def test_claims_that_arrive_after_a_cancelled_fetch_are_released(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5, keys=5))
    with monkeypatch.context() as patch:
        (await cancel_fetch(worker, patch)).go_on.set()
    seen = 0
    async with asyncio.timeout(10):
        while seen < 10:
            seen += len(await handle_all(worker, WANTS))
            await asyncio.sleep(0)


async def test_failed_release_is_repeated_by_the_next_fetch(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5))
    with monkeypatch.context() as patch:
        held = await cancel_fetch(worker, patch)
        await release_in_vain(held, refuse_settlements(patch))
        async with asyncio.timeout(10):
            with pytest.raises(QueueUnavailable):
                while True:
                    await worker.fetch(WANTS, wait=0)
                    await asyncio.sleep(0)
    assert len(await handle_all(worker, WANTS)) == 10


async def test_close_releases_claims_of_a_cancelled_fetch_in_progress(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(5))
    with monkeypatch.context() as patch:
        held = HeldClaim(patch)
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        assert await asyncio.to_thread(held.taken.wait, 5)
        fetching.cancel()
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)
        held.go_on.set()
        await asyncio.wait([fetching, closing])
    closing.result()
    assert len(await handle_all(await consumer(queue), WANTS)) == 10


async def test_recovery_releases_claims_of_a_cancelled_fetch(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose slots are all busy calls `recover`, but does not fetch."""
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish(messages(5))
    with monkeypatch.context() as patch:
        held = await cancel_fetch(worker, patch)
        await release_in_vain(held, refuse_settlements(patch))
    handled: list[str] = []
    async with asyncio.timeout(10):
        while len(handled) < 10:
            assert await worker.recover() == 0
            handled += await handle_all(other, WANTS)
            await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(12))
async def test_fetch_cancelled_at_any_step_leaves_no_lost_claim(queue: SqlQueue, steps: int) -> None:
    """This includes the moment when the result has arrived and the fetching task has not run yet."""
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish(messages(3, keys=3))
    for _ in range(20):
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        for _ in range(steps):
            await asyncio.sleep(0.0002)
        fetching.cancel()
        await asyncio.wait([fetching])
        if not fetching.cancelled():
            await worker.settle(
                [
                    Settlement(claim=it, delivery=it.deliveries[0], outcome=Outcome.RELEASE, close=it.ordered)
                    for it in fetching.result()
                ]
            )
    seen = 0
    async with asyncio.timeout(10):
        while seen < 6:
            seen += len(await handle_all(other, WANTS))
            await asyncio.sleep(0)


async def test_claims_returned_just_before_the_cancellation_are_released(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = await consumer(queue), await consumer(queue)
    await queue.publish(messages(1))
    honest = Writer._run

    async def cancelling(self: Writer, group: list[Any]) -> None:
        await honest(self, group)
        fetching.cancel()  # the fetching task has its result, and has not run yet

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_run", cancelling)
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        await asyncio.wait([fetching])
    assert fetching.cancelled()
    seen = 0
    async with asyncio.timeout(10):
        while seen < 2:
            seen += len(await handle_all(other, WANTS))
            await asyncio.sleep(0)
