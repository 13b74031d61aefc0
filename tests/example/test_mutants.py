"""A seeded bug of the example matches the source, and is detected by its tests."""

from pathlib import Path

import pytest

from tests.mutants.seeded import Mutant
from tests.mutants.trying import caught, place_of

INVITES = Mutant(
    name="invites-of-the-removed-stay-open",
    kind=13,
    file="services/organization/invites.py",
    old="return held is not None and held.invites_to(invite.role)",
    new="return True",
    tests=("tests/example/services/test_inviters.py",),
)


def test_seeded_bug_matches_its_file_exactly_once() -> None:
    assert place_of(INVITES).read_text(encoding="utf-8").count(INVITES.old) == 1, "move the seeded bug with the code"


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_seeded_bug_is_detected_by_its_tests(tmp_path: Path) -> None:
    assert caught(INVITES, tmp_path)
