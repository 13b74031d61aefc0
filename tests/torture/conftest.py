from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Processes
from tests.torture.fleet import Fleet
from tests.torture.nursery import Nursery


@pytest.fixture
def fleet(tmp_path: Path, migrated: Path) -> Iterator[Fleet]:
    with Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, migrated)
        yield fleet
        fleet.close()
