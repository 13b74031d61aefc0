"""Fixtures of the end-to-end tests: processes, and an installation of the application."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.application import Installation
from tests.e2e.processes import Processes
from tests.stacks import chosen


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


@pytest.fixture
def installation(processes: Processes, tmp_path: Path) -> Iterator[Installation]:
    with chosen().place(tmp_path) as place:
        yield Installation(processes, tmp_path, place)
