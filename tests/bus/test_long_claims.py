"""Tests of claims that hold more deliveries than `ClaimLimits.mailbox_batch`."""

from dataclasses import replace

import pytest

from bus.worker import executor
from bus.worker.claim_limits import CLAIM_LIMITS, RUN_TIME
from tests.bus.events import Deposited
from tests.bus.worker_harness import WorkerHarness


async def order_of_handling(monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
    """Return the accounts in the order of their events' handling, one handler of `seconds` at a time."""
    # Each claim of the memory driver is long with a batch of 2.
    monkeypatch.setattr(executor, "CLAIM_LIMITS", replace(CLAIM_LIMITS, mailbox_batch=2))
    harness = WorkerHarness()
    seen: list[str] = []
    amounts: dict[str, list[int]] = {"a": [], "b": []}

    async def on_deposit(event: Deposited) -> None:
        seen.append(event.account)
        amounts[event.account].append(event.amount)
        await harness.clock.sleep(seconds)

    harness.bus.add_async_ordered_listener(on_deposit, name="l", concurrency=1)
    async with harness.working():
        await harness.bus.publish_many([Deposited(account=key, amount=n) for key in "ab" for n in range(6)])
        for _ in range(100):
            await harness.clock.advance(seconds)
    assert amounts == {"a": [*range(6)], "b": [*range(6)]}
    return "".join(seen)


async def test_slow_handlers_release_the_rest_of_a_long_claim_after_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await order_of_handling(monkeypatch, RUN_TIME / 2 + 0.01) == "aabbaabbaabb"


async def test_fast_handlers_handle_a_long_claim_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await order_of_handling(monkeypatch, RUN_TIME / 10) == "aaaaaabbbbbb"
