"""Tests of how many slots a worker opens, which each cost a task."""

import asyncio

import pytest

from bus.worker import session
from bus.worker.slot import SlotTask
from tests.bus.events import Ticked
from tests.bus.worker_harness import WorkerHarness


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SlotTask]:
    """Return the tasks of all slots that are opened in a test."""
    tasks: list[SlotTask] = []

    class Counted(SlotTask):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]  # passed on as they are
            tasks.append(self)

    monkeypatch.setattr(session, "SlotTask", Counted)
    return tasks


async def test_claims_of_one_fetch_share_a_slot_unless_handlers_wait(opened: list[SlotTask]) -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def on_tick(event: Ticked) -> None:
        seen.append(event.n)

    harness.bus.add_async_listener(on_tick, name="l", concurrency=16)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(16)])
        await harness.until(lambda: len(seen) == 16)
    assert len(opened) == 1


async def test_waiting_handler_lets_the_other_claims_of_its_fetch_start(opened: list[SlotTask]) -> None:
    harness = WorkerHarness()
    begun: list[int] = []
    end = asyncio.Event()

    async def on_tick(event: Ticked) -> None:
        begun.append(event.n)
        if event.n >= 10:
            await end.wait()

    harness.bus.add_async_listener(on_tick, name="l", concurrency=16)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(26)])
        await harness.until(lambda: len(begun) == 26)
        assert sum(not it.done() for it in opened) == 16
        end.set()
