"""Delays and limits of the retry policy."""

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
