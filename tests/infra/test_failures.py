"""Rendering of errors: bounded in time, and never raising, for any class of error."""

import traceback
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from infra.failures import MAX_MEMBERS, MAX_RENDERED, describe, members, render_traceback
from tests.hostile_errors import PanicException

E = TypeVar("E", bound=BaseException)


class Circular(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> tuple[Exception, ...]:
        return (self,)


class Endless(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]  # hostile on purpose
        return Endless()


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # hostile on purpose
        raise PanicException


def nameless() -> BaseException:
    error: BaseException = Nameless("Odd", (Exception,), {})("text")
    return error


class FailingText(Exception):
    def __str__(self) -> str:
        raise nameless()


def throw(error: BaseException) -> None:
    raise error


def raised(error: E) -> E:
    """Return an error with a traceback."""
    with suppress(type(error)):
        throw(error)
    return error


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count the errors that are rendered."""
    extracted: list[object] = []
    extract = traceback.StackSummary.extract

    def counting(frames: Any, **options: Any) -> traceback.StackSummary:  # noqa: ANN401 - as the original
        extracted.append(frames)
        return extract(frames, **options)

    monkeypatch.setattr(traceback.StackSummary, "extract", counting)
    return extracted


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_wide_group_is_rendered_in_a_bounded_number_of_steps(size: int, rendered: list[object]) -> None:
    text = render_traceback(raised(ExceptionGroup("many", [raised(ValueError("x"))] * size)))
    assert len(rendered) <= MAX_RENDERED
    assert f"and {size - MAX_MEMBERS} more" in text


@pytest.mark.parametrize("length", [1_000, 100_000])
def test_long_chain_is_rendered_in_a_bounded_number_of_steps(length: int, rendered: list[object]) -> None:
    last: BaseException | None = None
    for number in range(length):
        error = ValueError(f"number {number}")
        error.__cause__, last = last, error
        raised(error)
    assert last is not None
    text = render_traceback(last)
    assert len(rendered) <= MAX_RENDERED
    assert text.endswith(f"ValueError: number {length - 1}\n")
    assert text.startswith("(earlier errors are not shown)")


def test_groups_inside_each_other_are_rendered_in_a_bounded_number_of_steps(rendered: list[object]) -> None:
    group: BaseException = raised(BaseExceptionGroup("leaf", [ValueError()]))
    for _ in range(200):
        group = raised(BaseExceptionGroup("node", [group, group]))
    assert render_traceback(group)
    assert len(rendered) <= MAX_RENDERED


@pytest.mark.parametrize(
    "make",
    [lambda: Circular("c", [ValueError("in")]), Endless, nameless, FailingText],
    ids=["group", "cause", "name", "str"],
)
def test_errors_that_override_special_attributes_are_rendered(make: Any) -> None:  # noqa: ANN401 - a class or a function
    error = raised(make())
    assert describe(error)
    assert "Traceback (most recent call last)" in render_traceback(error)


def test_members_of_a_group_are_those_of_its_construction() -> None:
    inner = ValueError("in")
    assert members(Circular("c", [inner])) == (inner,)


def test_traceback_shows_causes_contexts_notes_and_members() -> None:
    def fail() -> None:
        try:
            try:
                throw(KeyError("first"))
            except KeyError as error:
                raise ValueError("second") from error
        except ValueError:
            third = ExceptionGroup("third", [raised(LookupError("member"))])
            third.add_note("a note")
            raise third  # noqa: B904 - the context is what is tested

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    text = render_traceback(caught.value)
    places = [
        text.index(it)
        for it in (
            "KeyError: 'first'",
            "The above exception was the direct cause",
            "ValueError: second",
            "During handling of the above exception",
            "ExceptionGroup: third (1 sub-exception)",
            "a note",
            "  | LookupError: member",
        )
    ]
    assert places == sorted(places)
    assert 'in fail\n    raise ValueError("second") from error' in text
