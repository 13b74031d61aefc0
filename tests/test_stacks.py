"""The stacks that the tests with processes run on."""

import pytest

from tests import stacks
from tests.e2e.processes import ROOT


def test_stack_is_chosen_by_one_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stacks.VARIABLE, raising=False)
    assert stacks.chosen() == stacks.Stack("sqlite")
    monkeypatch.setenv(stacks.VARIABLE, "sqlite+valkey")
    assert stacks.chosen() == stacks.Stack("sqlite", "valkey")
    monkeypatch.setenv(stacks.VARIABLE, "postgres")
    assert stacks.chosen() == stacks.Stack("postgres")
    monkeypatch.setenv(stacks.VARIABLE, "sqlite+valky")
    with pytest.raises(ValueError, match=r"one of sqlite, .*sqlite\+valkey"):
        stacks.chosen()


def test_make_runs_every_stack_except_two() -> None:
    [line] = [it for it in (ROOT / "Makefile").read_text().splitlines() if it.startswith("STACKS")]
    # The differences between Redis 7, Redis 8 and Valkey do not depend on the database.
    but = {"postgres+redis7", "postgres+redis8"}
    assert {"sqlite", *line.partition("?=")[2].split()} == set(stacks.STACKS) - but
