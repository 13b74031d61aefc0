"""Delays and limits of the retry policy."""

import copy
import pickle
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import Retry


def test_default_retry_doubles_to_fifteen_minutes_and_ends_after_ten_attempts() -> None:
    retry = Retry()
    assert [retry.ceiling(n) for n in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900]
    assert retry.delay(9, Random(1)) is not None
    assert retry.delay(10, Random(1)) is None


@pytest.mark.parametrize(
    ("retry", "failures", "ceiling"),
    [
        (Retry(factor=1.01, max_delay=900.0), 684, 1.01**683),
        (Retry(factor=1.01, max_delay=900.0), 700, 900.0),
        (Retry(factor=100.0, max_delay=900.0), 1_000_000, 900.0),
        (Retry(factor=100.0, min_delay=0.0), 1_000_000, 0.0),
        (Retry(factor=1.0, min_delay=2.0), 1_000_000, 2.0),
    ],
)
def test_delay_follows_its_formula_after_any_number_of_failures(retry: Retry, failures: int, ceiling: float) -> None:
    assert retry.ceiling(failures) == pytest.approx(ceiling)


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_jitter_stays_in_its_bounds(failures: int, seed: int) -> None:
    for jitter, least in (("full", 0.0), ("equal", 0.5), ("none", 1.0)):
        retry = Retry(max_attempts=20_000, jitter=jitter)  # type: ignore[arg-type]  # a loop over the literals
        delay = retry.delay(failures, Random(seed))
        assert delay is not None
        assert least * retry.ceiling(failures) <= delay <= retry.ceiling(failures)


def test_max_attempts_of_one_allows_no_retry() -> None:
    assert Retry(max_attempts=1).delay(1, Random(1)) is None


def test_delays_replace_the_formula_and_the_last_one_repeats() -> None:
    retry = Retry(max_attempts=6, delays=(20, 300, 1800))
    assert [retry.delay(n, Random(1)) for n in range(1, 7)] == [20, 300, 1800, 1800, 1800, None]


def test_delays_are_spread_only_on_request() -> None:
    spread = Retry(delays=(20,), jitter="equal").delay(1, Random(1))
    assert spread is not None
    assert 10 <= spread < 20
    assert replace(Retry(min_delay=20), jitter="none").delay(1, Random(1)) == 20


class ServiceBusy(Exception): ...


class ServiceOverloaded(ServiceBusy): ...


def test_policy_of_the_nearest_base_class_applies() -> None:
    patient, impatient = Retry(max_attempts=50), Retry(max_attempts=1)
    retry = Retry(cases={Exception: impatient, ServiceBusy: patient})
    assert retry.policy_for(ServiceOverloaded()) is patient
    assert retry.policy_for(ValueError()) is impatient
    assert retry.policy_for(GeneratorExit()) is retry


def test_cases_do_not_change_with_the_mapping_of_the_caller() -> None:
    cases: dict[type[Exception], Retry] = {ValueError: Retry(max_attempts=1)}
    retry = Retry(cases=cases)
    cases.clear()
    assert retry.policy_for(ValueError()).max_attempts == 1


@pytest.mark.parametrize(("answer", "wait"), [(None, 0.0), (30, 30.0), (timedelta(minutes=2), 120.0)])
def test_after_demands_a_wait_in_seconds(answer: float | timedelta | None, wait: float) -> None:
    assert Retry(after=lambda _error: answer).wait_after(ValueError()) == wait
    assert Retry().wait_after(ValueError()) == 0.0


def test_retry_can_be_copied_pickled_and_hashed() -> None:
    retry = Retry(delays=(1, 2), cases={ValueError: Retry(max_attempts=1)})
    pickled = pickle.dumps(retry)
    assert pickle.loads(pickled) == copy.deepcopy(retry) == retry  # noqa: S301 - made by the line above
    assert hash(copy.copy(retry)) == hash(retry)
