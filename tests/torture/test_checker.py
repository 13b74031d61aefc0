"""Tests of the checker: a correct journal passes, and each kind of violation is found."""

from typing import cast

import pytest

from tests.torture.checker import check
from tests.torture.journal import Kind, Line

GOOD = """
1 accepted 1
1 accepted 2
1 accepted 3
2 start 1 1
2 failed 1 1
3 start 1 2
3 end 1 2
3 start 2 1
3 killing
2 start 1 2
2 end 1 2
2 start 2 1
2 end 2 1
2 start 3 1
2 end 3 1
"""
"""Process 3 is killed with event 1 handled but not settled, and within the run of event 2."""


def journal(text: str) -> list[Line]:
    return [line(number, *each.split()) for number, each in enumerate(text.strip().splitlines())]


def line(place: int, process: str, kind: str, n: str = "0", attempt: str = "0") -> Line:
    listener = "" if kind in {"accepted", "killing", "pausing"} else "l"
    return Line(
        kind=cast("Kind", kind),
        process=int(process),
        at=float(place),
        listener=listener,
        key="a",
        n=int(n),
        attempt=int(attempt),
    )


def test_permitted_journal_passes() -> None:
    assert check(journal(GOOD), "l", ordered=True) == []
    assert check(journal(GOOD.replace("3 killing\n", "3 pausing\n")), "l", ordered=True) == []


@pytest.mark.parametrize("late", ["3 start 2 1\n3 killing\n", "3 killing\n3 start 2 1\n"])
def test_actions_between_the_killing_line_and_the_end_are_permitted(late: str) -> None:
    good = GOOD.replace("3 end 1 2\n3 start 2 1\n3 killing\n", f"3 end 1 2\n{late}")
    assert check(journal(good), "l", ordered=True) == []
    ended = GOOD.replace("3 end 1 2\n3 start 2 1\n3 killing\n", "3 killing\n3 end 1 2\n3 start 2 1\n3 end 2 1\n")
    assert check(journal(ended), "l", ordered=True) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("2 start 3 1\n2 end 3 1\n", "", "lost: a/3"),
        ("1 accepted 3\n", "", "phantom: l a/3"),
        ("2 start 3 1\n2 end 3 1\n", "2 start 3 1\n2 end 3 1\n2 start 3 1\n2 end 3 1\n", "again, after"),
        ("2 failed 1 1\n", "2 cancelled 1 1\n", "only 0 failures before"),
        ("2 failed 1 1\n3 start 1 2\n", "3 start 1 1\n2 failed 1 1\n", "overlap"),
        ("3 killing\n2 start 1 2\n", "2 start 1 2\n3 killing\n", "overlap"),
        (
            "2 start 2 1\n2 end 2 1\n2 start 3 1\n2 end 3 1\n",
            "2 start 3 1\n2 end 3 1\n2 start 2 1\n2 end 2 1\n",
            "order",
        ),
        ("2 end 2 1\n2 start 3 1\n", "2 failed 2 1\n2 start 3 1\n", "started before 2 had succeeded"),
        ("3 killing\n", "3 cancelled 2 1\n", "again, after"),
        ("3 killing\n", "3 pausing\n3 start 2 1\n", "overlap"),
    ],
)
def test_violation_is_detected(before: str, after: str, fault: str) -> None:
    assert before in GOOD
    found = check(journal(GOOD.replace(before, after)), "l", ordered=True)
    assert [each for each in found if each.startswith(fault)], found
