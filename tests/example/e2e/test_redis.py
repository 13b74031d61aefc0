"""The application during an outage of the broker."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.application import SERVER, WORKER, Installation, Running
from tests.e2e.processes import Processes, until
from tests.e2e.test_redis import logs, started
from tests.servers import DURABLE, RedisServer
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]


SECONDS = 20.0
"""Seconds within which every process must recover."""


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    server = started(*DURABLE)
    yield server
    server.kill()


@pytest.fixture
def far(processes: Processes, tmp_path: Path, broker: RedisServer) -> Iterator[Installation]:
    """Return an installation with a separate broker."""
    with chosen().place(tmp_path, broker=broker) as place:
        yield Installation(processes, tmp_path, place)


def test_requests_succeed_during_a_broker_outage_and_effects_follow_later(
    far: Installation, broker: RedisServer
) -> None:
    installation = far
    server, worker = (installation.start(name) for name in (SERVER, WORKER))
    broker.kill()
    took: list[float] = []
    callers = []
    for number in range(5):
        asked_at = time.monotonic()
        callers.append(server.sign_up(f"ada{number}@example.com"))
        took.append(time.monotonic() - asked_at)
    assert server.get("/readyz").status_code == 200
    assert worker.get("/readyz").json()["checks"]["queue"] == "failed"
    # A process that starts during the outage works as well.
    other = Running(installation.spawn("start", SERVER))
    until(lambda: any(each["event"] == "server listening" for each in logs(other)), "it listens")
    callers.append(other.sign_up("ada5@example.com"))
    until(lambda: waiting(server) > 0, "what it set off waits in the outbox")
    assert installation.mails() == []

    broker.start()
    back_at = time.monotonic()
    until(lambda: len(installation.mails()) == len(callers), "the mails are there", timeout=SECONDS)
    print(f"requests took at most {max(took):.2f} s; mails {time.monotonic() - back_at:.1f} s after")  # noqa: T201
    for caller in callers:
        [organization] = caller.items("/v1/organizations")
        journal = f"/v1/organizations/{organization['id']}/audit"
        until(lambda c=caller, j=journal: len(c.items(j)) == 2, "the journal is written", timeout=SECONDS)  # type: ignore[misc]
        assert [each["event"] for each in caller.items(journal)] == ["OrganizationCreated", "ProjectCreated"]
    until(lambda: waiting(server) == 0, "nothing waits any more")
    for each in (worker, other, server):
        each.stop()


def waiting(server: Running) -> float:
    """Return the number of rows in the outbox."""
    return server.metric("beneath_outbox_rows")
