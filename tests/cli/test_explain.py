"""The retry policy in the output of `beneath bus explain` and `beneath bus listeners`."""

import pytest

from beneath.describe import event_description, explanation, listener_row
from bus import Bus, Retry
from bus.testing import BusKit
from tests.bus.events import Ticked


async def on_tick(event: Ticked) -> None: ...


def bus_with(retry: Retry) -> Bus:
    bus = BusKit().bus
    bus.add_async_listener(on_tick, name="ticks", retry=retry)
    return bus


def explained(retry: Retry) -> list[str]:
    bus = bus_with(retry)
    lines = list(explanation(event_description(bus.event_types["clock.ticked"], bus.listeners)))
    return [each.strip() for each in lines if "attempt" in each]


@pytest.mark.parametrize(
    ("retry", "shown"),
    [
        (Retry(max_attempts=1), "1 attempt; then a dead letter"),
        (Retry(max_attempts=3), "3 attempts, at most 1, 2 s apart; then a dead letter"),
        (Retry(max_attempts=9, delays=(5, 60)), "9 attempts, at most 5, 60, ... s apart; then a dead letter"),
    ],
)
def test_attempts_and_delays_are_shown_up_to_the_delay_that_repeats(retry: Retry, shown: str) -> None:
    assert explained(retry) == [shown]


def test_policy_of_each_case_is_shown() -> None:
    retry = Retry(max_attempts=2, cases={KeyError: Retry(max_attempts=1), OSError: Retry(max_attempts=3, delays=(7,))})
    assert explained(retry) == [
        "2 attempts, at most 1 s apart; then a dead letter",
        "after KeyError: 1 attempt",
        "after OSError: 3 attempts, at most 7, ... s apart",
    ]


def test_row_of_a_listener_with_a_million_attempts_is_short() -> None:
    [listener] = bus_with(Retry(max_attempts=1_000_000, factor=1.01)).listeners
    row = listener_row(listener)
    assert (row["attempts"], len(str(row["delays"])) < 1000) == (1_000_000, True)
