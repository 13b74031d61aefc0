"""Fixtures of the upgrade tests: the previous release, and a place for the processes of both."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_servers, servers
from tests.e2e.processes import Processes
from tests.stacks import Place
from tests.upgrade.deployment import Deployment, Release, unpacked


@pytest.fixture
def old(tmp_path: Path) -> Release:
    return unpacked(tmp_path / "release")


@pytest.fixture
def broker() -> Iterator[servers.RedisServer]:
    server = servers.new_server(servers.any_kind(), *servers.DURABLE)
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """A database without tables, alone or with a broker."""
    folder = tmp_path / "deployment"
    folder.mkdir()
    url, broker, name = f"sqlite:///{folder / 'beneath.db'}", None, None
    if request.param == "postgres":
        server = postgres_servers.shared()
        name = postgres_servers.wait_for(server.create_database())
        url = server.url(name)
    if request.param == "redis":
        broker = request.getfixturevalue("broker").url
    with Processes() as processes:
        yield Deployment(processes, folder, Place(db_url=url, redis_url=broker))
    if name is not None:
        postgres_servers.wait_for(postgres_servers.shared().drop_database(name))
