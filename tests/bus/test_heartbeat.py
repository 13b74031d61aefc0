"""Tests of the heartbeat, which watches the event loop from a thread, by the real clock."""

import asyncio
import threading
import time
from types import FrameType

import pytest

from bus.metrics import BusMetrics
from bus.options import BusOptions
from bus.worker.heartbeat import Heartbeat


class RecordingConsumer:
    """A consumer that counts renewals and notes when its lease is abandoned."""

    def __init__(self) -> None:
        self.renewals = 0
        self.abandoned = threading.Event()

    def renew(self) -> bool:
        self.renewals += 1
        return True

    def abandon(self) -> None:
        self.abandoned.set()


def no_handler(_: FrameType) -> str | None:
    return None


async def until(condition: object) -> None:
    for _ in range(400):
        if callable(condition) and condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition was never met")


async def test_heartbeat_renews_the_lease_while_the_event_loop_runs() -> None:
    consumer = RecordingConsumer()
    heartbeat = Heartbeat(consumer, BusOptions(renew_every=0.01), BusMetrics(), no_handler, lambda: None)  # type: ignore[arg-type]  # all that it uses
    heartbeat.start()
    await until(lambda: consumer.renewals >= 3)
    heartbeat.stop()
    assert not consumer.abandoned.is_set()


async def test_blocked_event_loop_loses_the_lease_and_the_log_names_the_handler() -> None:
    consumer = RecordingConsumer()
    named: list[str] = []

    def describe(frame: FrameType) -> str | None:
        if frame.f_code.co_name == "block_the_loop":
            named.append("the handler")
            return "the handler"
        return None

    lost, metrics = asyncio.Event(), BusMetrics()
    options = BusOptions(renew_every=0.01, max_stall=0.5)
    heartbeat = Heartbeat(consumer, options, metrics, describe, lost.set)  # type: ignore[arg-type]  # all that it uses
    heartbeat.start()
    await until(lambda: consumer.renewals)

    def block_the_loop() -> bool:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if consumer.abandoned.wait(0.01):
                return True
        return False

    assert block_the_loop()
    heartbeat.stop()
    await until(lambda: named)
    await until(lost.is_set)
    assert metrics.loop_stalls == 1


async def test_heartbeat_continues_after_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, metrics = RecordingConsumer(), BusMetrics()
    heartbeat = Heartbeat(consumer, BusOptions(renew_every=0.01), metrics, no_handler, lambda: None)  # type: ignore[arg-type]  # all that it uses
    failures = iter([ZeroDivisionError(), MemoryError()])
    renew = heartbeat._renew

    def flaky(*, log_failure: bool) -> bool | None:
        for failure in failures:
            raise failure
        return renew(log_failure=log_failure)

    monkeypatch.setattr(heartbeat, "_renew", flaky)
    heartbeat.start()
    await until(lambda: consumer.renewals >= 3)
    heartbeat.stop()
    assert metrics.heartbeat_failures == 2
