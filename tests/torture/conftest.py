from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Processes
from tests.stacks import chosen
from tests.torture.fleet import Fleet
from tests.torture.nursery import Nursery


@pytest.fixture
def fleet(tmp_path: Path, migrated: Path) -> Iterator[Fleet]:
    with chosen().place(tmp_path, template=migrated) as place, Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, place)
        yield fleet
        fleet.close()
