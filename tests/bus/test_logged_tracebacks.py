"""How often the traceback of a failing delivery is logged."""

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from bus import Retry
from bus.testing import BusKit
from bus.worker.logged_tracebacks import REMEMBERED, LoggedTracebacks
from tests.bus.events import Deposited, Ticked

STEADY = Retry(max_attempts=4, min_delay=1, max_delay=1, jitter="none")


def first_place(attempt: int) -> None:
    raise ConnectionError(f"refused at port {attempt}")


def second_place(attempt: int) -> None:
    raise ConnectionError(f"refused at port {attempt}")


async def lines_of(kit: BusKit, fail: Callable[[int], None], events: int = 1) -> list[dict[str, Any]]:
    """Return the log lines of the failures of `events` deliveries whose handler calls `fail`."""
    attempts = 0

    async def handler(event: Ticked) -> None:
        nonlocal attempts
        attempts += 1
        fail(attempts)

    kit.bus.add_async_listener(handler, name="listener", retry=STEADY)
    await kit.start()
    with capture_logs() as lines:
        for n in range(events):
            await kit.bus.publish(Ticked(n))
        await kit.advance(minutes=1)
    return [dict(each) for each in lines]


def shown(lines: list[dict[str, Any]]) -> list[tuple[str, int, bool]]:
    return [(line["event"], line["attempt"], "exception" in line) for line in lines]


async def test_only_first_and_last_of_equal_failures_log_their_traceback() -> None:
    async with BusKit(strict=False) as kit:
        lines = await lines_of(kit, first_place)
        [letter] = await kit.dead_letters()
    assert shown(lines) == [
        ("listener failed", 1, True),
        ("listener failed", 2, False),
        ("listener failed", 3, False),
        ("delivery dead-lettered", 4, True),
    ]
    assert [line["error"] for line in lines] == [f"ConnectionError: refused at port {n}" for n in range(1, 5)]
    assert [line["retry_in"] for line in lines[:3]] == [1, 1, 1]
    assert "in first_place" in lines[0]["exception"]
    assert letter.traceback == lines[3]["exception"]


async def test_failure_at_another_place_logs_its_traceback() -> None:
    async with BusKit(strict=False) as kit:
        lines = await lines_of(kit, lambda attempt: (second_place if attempt == 2 else first_place)(attempt))
    assert [each for *_, each in shown(lines)] == [True, True, True, True]
    assert "in second_place" in lines[1]["exception"]


async def test_each_delivery_logs_its_own_traceback() -> None:
    async with BusKit(strict=False) as kit:
        lines = await lines_of(kit, first_place, events=3)
    by_delivery = {line["event_id"]: [each for each in lines if each["event_id"] == line["event_id"]] for line in lines}
    assert [[each for *_, each in shown(some)] for some in by_delivery.values()] == [[True, False, False, True]] * 3


async def test_blocked_key_logs_its_traceback_each_time_it_is_blocked() -> None:
    async def handler(event: Deposited) -> None:
        first_place(event.amount)

    async with BusKit(strict=False) as kit:
        kit.bus.add_async_ordered_listener(handler, name="listener", retry=STEADY, on_exhausted="block")
        await kit.start()
        with capture_logs() as lines:
            await kit.bus.publish(Deposited(account="a", amount=1))
            await kit.advance(minutes=1)
            await kit.mq.unblock("listener", "a", skip=False)
            await kit.advance(minutes=1)
    once = [("listener failed", n, n == 1) for n in (1, 2, 3)] + [("ordering key blocked", 4, True)]
    assert shown([dict(each) for each in lines]) == once * 2


def test_number_of_remembered_deliveries_is_bounded_and_failing_ones_stay() -> None:
    logged = LoggedTracebacks()
    assert logged.is_new("listener", "busy", 'File "a.py", line 1')
    for n in range(REMEMBERED * 2):
        assert logged.is_new("listener", str(n), 'File "a.py", line 1')
        assert not logged.is_new("listener", "busy", 'File "a.py", line 1')
    assert len(logged) == REMEMBERED
    assert logged.is_new("listener", "0", 'File "a.py", line 1')


@pytest.mark.parametrize("indent", ["  ", "  |   ", "  | | "])
def test_traceback_is_new_if_any_of_its_frames_is_new(indent: str) -> None:
    logged = LoggedTracebacks()
    assert logged.is_new("listener", "1", f'{indent}File "a.py", line 1, in f\n{indent}  g()\nValueError: one\n')
    assert not logged.is_new("listener", "1", f'{indent}File "a.py", line 1, in f\n{indent}  g()\nValueError: two\n')
    assert logged.is_new("listener", "1", f'{indent}File "a.py", line 2, in f\n{indent}  g()\nValueError: two\n')
    assert logged.is_new("another", "1", f'{indent}File "a.py", line 2, in f\n{indent}  g()\nValueError: two\n')
