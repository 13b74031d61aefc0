import asyncio
from pathlib import Path

import pytest

from tests.world import migrated_file


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database file with every table and no rows, to copy."""
    return asyncio.run(migrated_file(tmp_path_factory.mktemp("template") / "template.db"))
