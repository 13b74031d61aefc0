"""The estimate of a server's time from request and answer times."""

import pytest

from infra.mq.clock_offset import ClockOffset


class Machine:
    """A process that estimates the offset of a server whose clock is some seconds `ahead`."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self._offset = ClockOffset()

    def ask(self, *, ahead: float, there: float, back: float) -> float:
        """Return the offset after an answer; `there` and `back` are the seconds that request and answer take."""
        asked_at = self._now
        read = asked_at + there
        self._now = read + back
        self._offset.learn(asked_at, read + ahead, self._now)
        return self._offset.seconds


@pytest.mark.parametrize(("there", "back"), [(0.0, 0.050), (0.050, 0.0), (0.010, 0.040), (0.0, 0.0)])
def test_offset_on_one_machine_is_zero_at_any_latency(there: float, back: float) -> None:
    assert Machine().ask(ahead=0.0, there=there, back=back) == 0.0


@pytest.mark.parametrize("ahead", [-3.0, 3.0])
def test_offset_error_is_at_most_half_the_round_trip(ahead: float) -> None:
    assert Machine().ask(ahead=ahead, there=0.010, back=0.030) == pytest.approx(ahead, abs=0.020)


def test_faster_answer_refines_the_offset_and_slower_answer_changes_nothing() -> None:
    machine = Machine()
    machine.ask(ahead=3.0, there=0.0, back=0.2)
    better = machine.ask(ahead=3.0, there=0.001, back=0.001)
    assert better == pytest.approx(3.0, abs=0.001)
    assert machine.ask(ahead=3.0, there=0.0, back=5.0) == better


def test_answer_that_contradicts_the_known_offset_replaces_the_offset() -> None:
    machine = Machine()
    machine.ask(ahead=0.0, there=0.001, back=0.001)
    assert machine.ask(ahead=60.0, there=0.5, back=0.5) == pytest.approx(60.0, abs=0.5)


def test_answer_is_ignored_if_the_local_clock_was_set_back_meanwhile() -> None:
    machine = Machine()
    machine.ask(ahead=3.0, there=0.001, back=0.001)
    assert machine.ask(ahead=0.0, there=0.0, back=-60.0) == pytest.approx(3.0, abs=0.001)
