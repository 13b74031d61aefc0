"""Fixtures of the torture tests: fleets of processes, and servers that tests stop, kill or disconnect."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import postgres_servers
from tests.e2e.processes import Processes
from tests.postgres_servers import PostgresServer
from tests.servers import DURABLE, RedisServer, new_server
from tests.stacks import Place, chosen
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcesses


@contextmanager
def fleet_at(folder: Path, place: AbstractContextManager[Place]) -> Iterator[Fleet]:
    """Create a fleet for the block, and end its processes afterwards."""
    with place as where, Processes() as processes, ForkedProcesses() as forked:
        fleet = Fleet(processes, forked, folder, where)
        yield fleet
        fleet.close()


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A broker for one test, which syncs everything to disk before it responds."""
    kind = chosen().broker
    assert kind is not None
    server = new_server(kind, *DURABLE)
    yield server
    server.kill()


@pytest.fixture
def far(tmp_path: Path, migrated: Path, broker: RedisServer) -> Iterator[Fleet]:
    """A fleet on that server."""
    with fleet_at(tmp_path, chosen().place(tmp_path, template=migrated, broker=broker)) as fleet:
        yield fleet


@pytest.fixture
def fleet(tmp_path: Path, migrated: Path) -> Iterator[Fleet]:
    with fleet_at(tmp_path, chosen().place(tmp_path, template=migrated)) as fleet:
        yield fleet


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for one test, which may stop and restart it."""
    server = postgres_servers.new_server()
    yield server
    server.stop(signal.SIGQUIT)


@pytest.fixture
def near(tmp_path: Path, migrated: Path, postgres: PostgresServer) -> Iterator[Fleet]:
    """A fleet on that server; its broker, if any, is the shared one."""
    with fleet_at(tmp_path, chosen().place(tmp_path, template=migrated, postgres=postgres)) as fleet:
        yield fleet


@pytest.fixture
def keeper(request: pytest.FixtureRequest) -> RedisServer | PostgresServer:
    """The server of queue and leases for one test: the broker, or PostgreSQL without one."""
    server: RedisServer | PostgresServer = request.getfixturevalue("broker" if chosen().broker else "postgres")
    return server


@pytest.fixture
def leased(tmp_path: Path, migrated: Path, keeper: RedisServer | PostgresServer) -> Iterator[Fleet]:
    """A fleet on that server."""
    place = (
        chosen().place(tmp_path, template=migrated, broker=keeper)
        if isinstance(keeper, RedisServer)
        else chosen().place(tmp_path, postgres=keeper)
    )
    with fleet_at(tmp_path, place) as fleet:
        yield fleet


@pytest.fixture
def apart(tmp_path: Path, migrated: Path, postgres: PostgresServer, broker: RedisServer) -> Iterator[Fleet]:
    """A fleet on both servers, each of which the test may stop."""
    with fleet_at(tmp_path, chosen().place(tmp_path, template=migrated, postgres=postgres, broker=broker)) as fleet:
        yield fleet
