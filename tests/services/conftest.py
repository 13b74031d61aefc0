"""The fixture of service tests: all services on a new database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.world import World, world


@pytest.fixture
async def domain(tmp_path: Path, migrated: Path) -> AsyncIterator[World]:
    async with world(migrated, tmp_path / "beneath.db") as built:
        yield built
