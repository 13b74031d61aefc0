"""The application during an outage of the broker, and with unusable brokers."""

import pytest

from tests.e2e.application import Installation, Running
from tests.e2e.processes import until
from tests.servers import RedisServer, free_port, new_server
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]


def started(*options: str) -> RedisServer:
    kind = chosen().broker
    assert kind is not None
    return new_server(kind, *options)


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
