"""Fixtures and settings of all tests: processes, stacks, a migrated database file, plain tracebacks."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
import structlog

from tests.stacks import chosen


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes for `-n auto`: two per processor, because most of the longer tests wait."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of other stacks than the chosen one."""
    stack = chosen()
    embedded = stack.database == "sqlite" and stack.broker is None
    for item in items:
        if not embedded and item.get_closest_marker("embedded"):
            item.add_marker(pytest.mark.skip(reason="it is about the queue inside SQLite"))
        if stack.broker is None and item.get_closest_marker("broker"):
            item.add_marker(pytest.mark.skip(reason="it is about a broker, and this stack has none"))
        if embedded and item.get_closest_marker("leases"):
            item.add_marker(pytest.mark.skip(reason="it is about leases, and the queue inside SQLite needs none"))
        postgres = item.get_closest_marker("postgres")
        if postgres and stack.database != "postgres":
            item.add_marker(pytest.mark.skip(reason="it is about PostgreSQL, and this stack has none"))
        if postgres and "queue" in postgres.args and stack.broker is not None:
            item.add_marker(pytest.mark.skip(reason="it is about the queue inside PostgreSQL"))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a template of a database file, with every table and no rows."""
    from tests.world import migrated_file  # imports all services, which the controller of pytest-xdist does not need

    return asyncio.run(migrated_file(tmp_path_factory.mktemp("template") / "template.db"))


@pytest.fixture
def migrated_copy(migrated: Path, tmp_path: Path) -> Path:
    """Return a new database file of the test's own, with every table and no rows."""
    return Path(shutil.copy(migrated, tmp_path / "beneath.db"))


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Log tracebacks in Python's format; the coloured ones with local variables take a second each."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, renderer])
