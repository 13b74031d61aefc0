"""A short soak; `make soak` runs long ones."""

import pytest

from tests.soak.__main__ import main

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(300)]


def test_short_soak_breaks_no_promise() -> None:
    assert main(["--minutes", "0.2", "--seed", "11", "--without", "clock"]) == 0
