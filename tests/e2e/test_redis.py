"""The application during an outage of the broker, and with unusable brokers."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.application import SERVER, WORKER, Installation, Running
from tests.e2e.processes import Processes, until
from tests.servers import DURABLE, RedisServer, free_port, new_server
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]

SECONDS = 20.0
"""Seconds within which every process must recover."""


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    server = started(*DURABLE)
    yield server
    server.kill()


def started(*options: str) -> RedisServer:
    kind = chosen().broker
    assert kind is not None
    return new_server(kind, *options)


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


def test_processes_start_while_the_broker_is_unreachable(installation: Installation) -> None:
    env = {"BENEATH_MQ_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    running = Running(installation.spawn("start", "all", env=env))
    until(lambda: any(each["event"] == "queue connection postponed" for each in logs(running)), "it warns")
    until(lambda: any(each["event"] == "server listening" for each in logs(running)), "it listens")
    running.sign_up("ada@example.com")
    running.stop()


def logs(running: Running) -> list[dict[str, str]]:
    assert running.process.running, running.process.stderr
    return running.logs


@pytest.mark.parametrize(
    ("options", "address", "said"),
    [
        ((), "http://127.0.0.1:{port}", "mq.redis.url is not the URL of a Redis server"),
        (("--requirepass", "right"), "redis://:wrong@127.0.0.1:{port}", "it refuses this username or password"),
        (("--requirepass", "right"), "redis://127.0.0.1:{port}", "it requires a password"),
        (
            ("--user", "reader", "on", ">pw", "~*", "&*", "+@read", "+info", "+client", "+select"),
            "redis://reader:pw@127.0.0.1:{port}",
            "this user lacks permission: its ACL must allow",
        ),
        (("--replicaof", "127.0.0.1 1"), "redis://127.0.0.1:{port}", "is a read-only replica"),
        (
            ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"),
            "redis://127.0.0.1:{port}",
            "set maxmemory-policy to noeviction",
        ),
    ],
    ids=["scheme", "wrong password", "no password", "permission", "replica", "evicting"],
)
def test_unusable_broker_is_refused_in_one_line(
    installation: Installation, options: tuple[str, ...], address: str, said: str
) -> None:
    server = started(*options)
    env = {"BENEATH_LOG_LEVEL": "error", "BENEATH_MQ_REDIS_URL": address.format(port=server.port)}
    for arguments in (("start", "all"), ("bus", "stats")):
        process = installation.spawn(*arguments, env=env)
        assert process.wait() in {1, 2}, process.stderr
        [line] = process.stderr.splitlines()
        assert said in line
        assert line.startswith("beneath: ")
        assert "wrong@" not in line
    server.kill()


def test_a_message_over_the_limit_is_refused_in_one_line(installation: Installation) -> None:
    installation.start("all").stop()
    fields = '{"user_id": "01a209e7-4622-750b-b3d6-3f88b7bfd1f3", "email": "e@example.com", "name": "%s"}' % (
        "x" * 2000
    )
    process = installation.spawn("bus", "publish", "UserUpdated", fields, env={"BENEATH_BUS_MAX_PAYLOAD": "1024"})
    assert process.wait() == 1, process.stderr
    line = process.stderr.splitlines()[-1]
    assert line.startswith("beneath: UserUpdated has 22")
    assert "bytes, headers included" in line
    assert "at most 1024 are allowed" in line
