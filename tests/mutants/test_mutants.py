"""Each seeded bug matches the source, selects tests that exist, and is detected by them."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.harness import DRIVERS
from tests.mutants.seeded import MUTANTS, Mutant
from tests.mutants.trying import ROOT, caught, place_of

TEST = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)
OPERATORS = {"and", "or", "not"}
"""The words of a `-k` expression that select no test."""


def names_of_tests(target: str) -> list[str]:
    """Return the names of the test functions in a file or folder."""
    place = ROOT / target
    files = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
    return [name for file in files for name in TEST.findall(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name)
def test_seeded_bug_matches_its_file_exactly_once(mutant: Mutant) -> None:
    assert place_of(mutant).read_text(encoding="utf-8").count(mutant.old) == 1, "move the seeded bug with the code"
    assert mutant.old != mutant.new


def test_seeded_bugs_have_unique_names() -> None:
    assert [name for name, count in Counter(it.name for it in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name)
def test_seeded_bug_selects_existing_tests(mutant: Mutant) -> None:
    names = [name for target in mutant.tests if target.startswith("tests/") for name in names_of_tests(target)]
    assert names
    if "-k" in mutant.tests:
        expression = mutant.tests[mutant.tests.index("-k") + 1]
        for word in set(re.findall(r"\w+", expression)) - OPERATORS - set(DRIVERS):
            assert any(word in name for name in names), f"no test is called {word}: rename it in the seeded bug"


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name)
def test_seeded_bug_is_detected_by_its_tests(mutant: Mutant, tmp_path: Path) -> None:
    assert caught(mutant, tmp_path)
