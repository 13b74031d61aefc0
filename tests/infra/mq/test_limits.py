"""Limits of the values that drivers store: texts, delays, times and counts."""

import math
from datetime import timedelta
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.mq import limits

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=60)


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@given(ANY_TEXT, st.integers(0, 80), st.sampled_from(["start", "end"]))
def test_storable_text_is_bounded_utf8_without_nul(text: str, size: int, keep: str) -> None:
    stored = limits.storable_text(text, size, keep="end" if keep == "end" else "start")
    assert len(stored.encode()) <= size
    assert "\0" not in stored


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_storable_text_leaves_storable_text_alone(text: str) -> None:
    assert limits.storable_text(text, 4 * 60) == text


def test_storable_text_is_cut_at_the_requested_end_between_characters() -> None:
    assert limits.storable_text("äöü", 5) == "äö"
    assert limits.storable_text("äöü", 5, keep="end") == "öü"
    assert limits.storable_text("a\ud800\0b", 99) == "a\\ud800\\x00b"
    assert limits.storable_text("abc", 0, keep="end") == ""


def test_texts_are_measured_in_bytes_not_characters() -> None:
    assert limits.check_key("ä" * 512) == "ä" * 512
    with pytest.raises(ValueError, match="an ordering key must be a str of 1 to 1024 bytes"):
        limits.check_key("ä" * 513)
    assert limits.check_id("€" * 85) == "€" * 85
    with pytest.raises(ValueError, match="1 to 256 bytes"):
        limits.check_id("€" * 86)
    with pytest.raises(ValueError, match="the name must be a str of 1 to 200 bytes"):
        limits.check_name("n" * 201, "the name")


@pytest.mark.parametrize("value", ["", "a\0", "\ud800", b"bytes", None, 7, ["k"], _Unprintable()])
def test_unstorable_text_is_refused_and_quoted_in_the_error(value: object) -> None:
    for check in (limits.check_key, limits.check_id):
        with pytest.raises(ValueError, match="must be a str of 1 to") as caught:
            check(value)
        assert len(str(caught.value).encode()) < 400  # The error message itself can be printed and stored.


def test_a_str_enum_becomes_plain_text() -> None:
    class Color(StrEnum):
        RED = "red"

    key = limits.check_key(Color.RED)
    assert (key, type(key)) == ("red", str)


def test_an_ordering_key_may_hold_line_ends_but_an_id_may_not() -> None:
    assert limits.check_key("a\nb") == "a\nb"
    with pytest.raises(ValueError, match="printable"):
        limits.check_id("a\nb")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.001, True, "3", None, 10**400, timedelta.max])
def test_delays_are_finite_and_at_most_100_years(value: object) -> None:
    with pytest.raises(ValueError, match="a delay \\(in seconds\\) must be a number from 0 to"):
        limits.check_delay(value)


def test_delays_are_seconds_or_timedeltas() -> None:
    assert limits.check_delay(timedelta(minutes=1)) == 60.0
    assert limits.check_delay(0) == 0.0
    assert limits.check_delay(limits.MAX_DELAY) == limits.MAX_DELAY


def test_due_times_end_with_the_year_9999() -> None:
    assert limits.check_due_at(limits.MAX_DUE_AT) == limits.MAX_DUE_AT
    for value in (limits.MAX_DUE_AT + 1, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a due time"):
            limits.check_due_at(value)


def test_counts_are_whole_numbers_in_range() -> None:
    assert limits.check_count(3, "x", least=1, most=3) == 3
    for value in (0, 4, True, 2.0, "2", None):
        with pytest.raises(ValueError, match="x must be a whole number from 1 to 3"):
            limits.check_count(value, "x", least=1, most=3)


def test_exclusive_bound_itself_is_refused() -> None:
    assert limits.check_number(0.5, "x", least=0, most=1, above=True) == 0.5
    with pytest.raises(ValueError, match="more than 0"):
        limits.check_number(0, "x", least=0, most=1, above=True)
