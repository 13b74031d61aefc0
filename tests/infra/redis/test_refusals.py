"""Whatever is wrong with the server or its address is said in one line."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infra.clock import SystemClock
from infra.mq import Message, MessageTooLarge, QueueClosed, QueueError, QueueRejected, QueueUnavailable
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.contract.acting import message, subscription
from tests.infra.redis.conftest import Open


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "mq.redis.url"),
        ("http://localhost:6379", "redis://"),
        ("redis://", "host"),
        ("redis://localhost:seven", "mq.redis.url"),
        ("redis://localhost/one", "database is a number"),
        ("redis://localhost/0?db=one", "'db' is a number"),
        ("redis://localhost?pasword=x", "unknown option 'pasword'; did you mean 'password'?"),
        ("redis://localhost?PASSWORD=x", "unknown option 'PASSWORD'; did you mean 'password'?"),
        ("redis://localhost?socket_timeout=3", "unknown option; there are db, password, username"),
        ("redis://localhost?ssl_ca_certs=x", "unknown option"),
        ("redis://localhost?db=1&db=2", "'db' is given twice"),
        ("redis://localhost?password=", "'password' is empty"),
        ("redis://localhost#0", "mq.redis.url"),
        ("redis://u:12/hush@host", "database is a number"),
        ("redis://u:hush/@host", "mq.redis.url"),
        ("redis://u:hu?hush@host", "mq.redis.url"),
        ("unix://", "socket"),
        ("", "mq.redis.url"),
    ],
)
def test_a_wrong_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(QueueUnavailable, match=said) as refused:
        RedisQueue(url, clock=SystemClock())
    assert "\n" not in str(refused.value)
    assert "hush" not in str(refused.value)


async def refusal(url: str, kind: type[QueueError] = QueueRejected) -> str:
    """Return why the queue can not be opened: not before somebody changes something, or just not now."""
    queue = RedisQueue(url, clock=SystemClock(), connect_timeout=2)
    with pytest.raises(kind) as refused:
        await queue.open()
    assert "\n" not in str(refused.value)
    with pytest.raises(QueueClosed):
        await queue.stats()
    return str(refused.value)


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    port = servers.free_port()
    assert f"127.0.0.1:{port} cannot be reached" in await refusal(f"redis://:secret@127.0.0.1:{port}", QueueUnavailable)
    assert "cannot be reached" in await refusal(f"unix://{tmp_path}/nobody.sock", QueueUnavailable)


async def test_a_password_is_missing_or_wrong_and_never_shown() -> None:
    server = servers.new_server(servers.any_kind(), "--requirepass", "right")
    assert "wants a password" in await refusal(server.url)
    wrong = await refusal(f"redis://:wrong@127.0.0.1:{server.port}")
    assert "refuses" in wrong
    assert "wrong" not in wrong
    queue = RedisQueue(f"redis://:right@127.0.0.1:{server.port}/3", clock=SystemClock())
    await queue.open()
    await queue.close()


async def test_a_user_without_permission_learns_what_is_needed() -> None:
    kind = servers.any_kind()
    server = servers.new_server(
        kind, "--user", *["reader", "on", ">pw", "~*", "&*", "+@read", "+info", "+client", "+select"]
    )
    assert "ACL" in await refusal(f"redis://reader:pw@127.0.0.1:{server.port}")


async def test_a_user_who_may_do_only_what_is_needed_is_enough(opened: Open, namespace: str) -> None:
    rights = "+@read +@write +@scripting -@dangerous +publish +subscribe +ping +time +info +client|setname +select"
    user = f"bus on >pw ~{{{namespace}:*}}:* &{{{namespace}:*}}:* {rights}"
    server = servers.new_server(servers.any_kind(), "--user", *user.split())
    queue = await opened(f"redis://bus:pw@127.0.0.1:{server.port}")
    await queue.declare([subscription()], [])
    await queue.publish([message("a")])
    assert (await queue.stats())[0].ready == 1


async def test_a_replica_is_refused() -> None:
    primary = servers.new_server(servers.any_kind())
    replica = servers.new_server(servers.any_kind(), "--replicaof", f"127.0.0.1 {primary.port}")
    assert "read-only replica" in await refusal(replica.url)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_server_that_evicts_messages_is_refused(policy: str) -> None:
    server = servers.new_server(servers.any_kind(), "--maxmemory", "64mb", "--maxmemory-policy", policy)
    assert f"maxmemory-policy {policy}" in await refusal(server.url)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--save", "", "--appendonly", "no"), "keeps nothing on disk"),
        (("--save", "60 1", "--appendonly", "no"), "saves only now and then"),
        (("--appendonly", "yes"), None),
    ],
)
async def test_a_server_that_forgets_is_warned_of(opened: Open, options: tuple[str, ...], warned: str | None) -> None:
    server = servers.new_server(servers.any_kind(), *options)
    with capture_logs() as logs:
        await opened(server.url)
    warnings = [it["event"] for it in logs if it["log_level"] == "warning"]
    assert [warned in it for it in warnings if warned] == ([True] if warned else [])


async def test_a_message_over_the_limit_is_rejected_and_its_neighbours_too(opened: Open) -> None:
    queue = await opened(max_body=1000)
    await queue.declare([subscription()], [])
    large = Message(id="large", event="Happened", body=bytes(1001), published_at=1.0)
    with pytest.raises(MessageTooLarge, match=r"large has 1001 bytes; Redis takes at most 1000"):
        await queue.publish([message("a"), large])
    assert (await queue.stats())[0].ready == 0


async def test_a_full_server_takes_no_messages_but_lets_those_it_has_be_handled(opened: Open) -> None:
    server = servers.new_server(servers.any_kind(), "--maxmemory", "32mb", "--maxmemory-policy", "noeviction")
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    body = bytes(1024 * 1024)
    accepted = 0
    with pytest.raises(QueueUnavailable, match="maxmemory"):
        while accepted < 100:
            await queue.publish([Message(id=str(accepted), event="Happened", body=body, published_at=1.0)])
            accepted += 1
    assert (await queue.stats())[0].ready == accepted
