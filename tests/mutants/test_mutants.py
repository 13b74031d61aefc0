from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.seeded import MUTANTS, Mutant
from tests.mutants.trying import caught, place_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name)
def test_seeded_bug_matches_its_file_exactly_once(mutant: Mutant) -> None:
    assert place_of(mutant).read_text(encoding="utf-8").count(mutant.old) == 1, "move the seeded bug with the code"
    assert mutant.old != mutant.new


def test_seeded_bugs_have_unique_names() -> None:
    assert [name for name, count in Counter(it.name for it in MUTANTS).items() if count > 1] == []


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name)
def test_seeded_bug_is_detected_by_its_tests(mutant: Mutant, tmp_path: Path) -> None:
    assert caught(mutant, tmp_path)
