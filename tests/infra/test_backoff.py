"""The pauses between attempts."""

from random import Random

from infra.backoff import Backoff


def test_each_failure_doubles_the_pause_up_to_the_limit() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_success_restores_the_first_pause() -> None:
    backoff = Backoff(0.5, 3.0)
    backoff.failed()
    backoff.failed()
    backoff.succeeded()
    assert backoff.failed() == 0.5


def test_jitter_takes_at_most_half_of_the_pause() -> None:
    backoff = Backoff(1.0, 1.0, jitter=Random(1))
    pauses = [backoff.failed() for _ in range(200)]
    assert 0.5 <= min(pauses) < 0.6
    assert 0.9 < max(pauses) <= 1.0
