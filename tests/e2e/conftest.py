"""Fixtures of the end-to-end tests: processes, and installations of the application."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.application import SERVER, WORKER, Installation, Running
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Running, Running]]:
    """Start a server and a worker as two processes at the same time."""
    folder = tmp_path_factory.mktemp("pair")
    with chosen().place(folder) as place, Processes() as processes:
        installation = Installation(processes, folder, place)
        server, worker = (Running(installation.spawn("start", name)) for name in (SERVER, WORKER))
        server.wait_ready()
        worker.wait_ready()
        yield installation, server, worker
        worker.stop()
        server.stop()
