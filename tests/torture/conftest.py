import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_servers
from tests.e2e.processes import Processes
from tests.postgres_servers import PostgresServer
from tests.servers import RedisServer, new_server
from tests.stacks import chosen
from tests.torture.fleet import Fleet
from tests.torture.nursery import Nursery


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A server of the test's own, which writes everything to disk before it answers."""
    kind = chosen().broker
    assert kind is not None
    server = new_server(kind, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
    yield server
    server.kill()


@pytest.fixture
def far(tmp_path: Path, migrated: Path, broker: RedisServer) -> Iterator[Fleet]:
    """A fleet on that server."""
    place = chosen().place(tmp_path, template=migrated, broker=broker)
    with place as where, Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, where)
        yield fleet
        fleet.close()


@pytest.fixture
def fleet(tmp_path: Path, migrated: Path) -> Iterator[Fleet]:
    with chosen().place(tmp_path, template=migrated) as place, Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, place)
        yield fleet
        fleet.close()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to be stopped and started."""
    server = postgres_servers.new_server()
    yield server
    server.stop(signal.SIGQUIT)


@pytest.fixture
def near(tmp_path: Path, migrated: Path, postgres: PostgresServer) -> Iterator[Fleet]:
    """A fleet on that server; its broker, if there is one, is the one of all tests."""
    place = chosen().place(tmp_path, template=migrated, postgres=postgres)
    with place as where, Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, where)
        yield fleet
        fleet.close()


@pytest.fixture
def apart(tmp_path: Path, migrated: Path, postgres: PostgresServer, broker: RedisServer) -> Iterator[Fleet]:
    """A fleet on both, so that either can go away."""
    place = chosen().place(tmp_path, template=migrated, postgres=postgres, broker=broker)
    with place as where, Processes() as processes, Nursery() as nursery:
        fleet = Fleet(processes, nursery, tmp_path, where)
        yield fleet
        fleet.close()
