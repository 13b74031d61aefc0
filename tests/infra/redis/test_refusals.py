"""Errors of the server or its URL: each is explained in one line."""

import asyncio
import itertools
from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from infra.clock import SystemClock
from infra.mq import Message, MessageTooLarge, Outcome, QueueClosed, QueueError, QueueRejected, QueueUnavailable
from infra.mq.drivers.redis import RedisQueue
from infra.mq.drivers.redis.address import RedisAddress
from infra.mq.drivers.redis.errors import explain
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.scripts import scripts
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, message, subscription
from tests.infra.redis.commands import command, eventually
from tests.infra.redis.conftest import Open


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "mq.redis.url"),
        ("http://localhost:6379", "redis://"),
        ("redis://", "host"),
        ("redis://localhost:seven", "mq.redis.url"),
        ("redis://localhost/one", "number of a database"),
        ("redis://localhost/0?db=one", "'db' must be a number"),
        ("redis://localhost?pasword=x", "unknown option 'pasword'; did you mean 'password'?"),
        ("redis://localhost?PASSWORD=x", "unknown option 'PASSWORD'; did you mean 'password'?"),
        ("redis://localhost?socket_timeout=3", "unknown option; the options are db, password, username"),
        ("redis://localhost?ssl_ca_certs=x", "unknown option"),
        ("redis://localhost?db=1&db=2", "'db' is given twice"),
        ("redis://localhost?password=", "'password' is empty"),
        ("redis://localhost#0", "mq.redis.url"),
        ("redis://u:12/hush@host", "number of a database"),
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
    """Return the message of the error that opening the queue raises, permanent or transient."""
    queue = RedisQueue(url, clock=SystemClock(), connect_timeout=2)
    with pytest.raises(kind) as refused:
        await queue.open()
    assert "\n" not in str(refused.value)
    with pytest.raises(QueueClosed):
        await queue.stats()
    return str(refused.value)


async def test_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    port = servers.free_port()
    assert f"127.0.0.1:{port} cannot be reached" in await refusal(f"redis://:secret@127.0.0.1:{port}", QueueUnavailable)
    assert "cannot be reached" in await refusal(f"unix://{tmp_path}/missing.sock", QueueUnavailable)


async def test_missing_or_wrong_password_is_refused_and_never_shown() -> None:
    server = servers.new_server(servers.any_kind(), "--requirepass", "right")
    assert "requires a password" in await refusal(server.url)
    wrong = await refusal(f"redis://:wrong@127.0.0.1:{server.port}")
    assert "refuses" in wrong
    assert "wrong" not in wrong
    queue = RedisQueue(f"redis://:right@127.0.0.1:{server.port}/3", clock=SystemClock())
    await queue.open()
    await queue.close()


async def test_user_without_permission_is_told_the_required_permissions() -> None:
    kind = servers.any_kind()
    server = servers.new_server(
        kind, "--user", *["reader", "on", ">pw", "~*", "&*", "+@read", "+info", "+client", "+select"]
    )
    assert "ACL" in await refusal(f"redis://reader:pw@127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    "rights",
    [
        "+@read +@write +@scripting -@dangerous +publish +subscribe +ping +time +info +client|setname +select",
        "+@read +@write +@scripting +@connection +publish +subscribe +time +info",  # those that an error names
    ],
)
async def test_minimal_permissions_are_sufficient(opened: Open, namespace: str, rights: str) -> None:
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
        (("--save", "", "--appendonly", "no"), "a restart loses every message"),
        (("--save", "60 1", "--appendonly", "no"), "a crash loses messages since the last snapshot"),
        (("--appendonly", "yes"), None),
    ],
)
async def test_server_without_persistence_causes_a_warning(
    opened: Open, options: tuple[str, ...], warned: str | None
) -> None:
    server = servers.new_server(servers.any_kind(), *options)
    with capture_logs() as logs:
        await opened(server.url)
    warnings = [(it["event"], it["risk"], it["fix"]) for it in logs if it["log_level"] == "warning"]
    assert warnings == ([("append-only file disabled", warned, "set appendonly yes")] if warned else [])


async def test_message_over_the_limit_is_rejected_with_its_whole_call(opened: Open) -> None:
    queue = await opened(max_body=1000)
    await queue.declare([subscription()], [])
    large = Message(id="large", event="Happened", body=bytes(1001), published_at=1.0)
    with pytest.raises(MessageTooLarge, match=r"large has 1001 bytes; this queue takes at most 1000"):
        await queue.publish([message("a"), large])
    assert (await queue.stats())[0].ready == 0


async def test_full_server_rejects_publishes_but_delivers_stored_messages(opened: Open) -> None:
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


async def test_new_worker_can_start_on_a_full_server_and_free_memory(opened: Open) -> None:
    server = servers.new_server(servers.any_kind(), "--maxmemory", "24mb", "--maxmemory-policy", "noeviction")
    queue = await opened(server.url)
    wanted = [subscription(), subscription("line", ordered=True)]
    await queue.declare(wanted, [])
    number = 0
    for size in (1024 * 1024, 10_000, 10):
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            while number < 100_000:
                body = bytes(size)
                await queue.publish(
                    [Message(id=f"{number}.{it}", event="Happened", body=body, published_at=1.0) for it in range(4)]
                )
                number += 1
    # The server loses its scripts, which the driver loads once.
    await command(server, "SCRIPT FLUSH")
    restarted = await opened(server.url)
    await restarted.declare(wanted, [])
    worker = await consumer(restarted, WORK, "line")
    assert await asyncio.to_thread(worker.renew)
    assert await worker.recover() == 0
    claims = await worker.fetch({WORK: 5, "line": 5}, wait=0)
    turns = itertools.cycle([Outcome.DONE, Outcome.RETRY, Outcome.PARK, Outcome.DEAD])
    assert await worker.settle([end(it, next(turns), error="no") for it in claims if not it.ordered]) == []
    await worker.unpark({WORK: ["Happened"]})
    for claim in claims:
        if claim.ordered:
            assert await worker.settle([end(claim, nth=nth) for nth in range(len(claim.deliveries))]) == []
    while claims := await worker.fetch({WORK: 100, "line": 100}, wait=0):
        await worker.settle([end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))])
    await queue.publish([message("room")])
    await worker.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("NOSCRIPT No matching script.", QueueUnavailable),
        ("OOM command not allowed when used memory > 'maxmemory'.", QueueUnavailable),
        ("LOADING Redis is loading the dataset in memory", QueueUnavailable),
        ("READONLY You can't write against a read only replica.", QueueUnavailable),
        ("READONLY You can not run script with write flag on readonly replica.", QueueUnavailable),
        ("BUSY Redis is busy running a script.", QueueUnavailable),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", QueueUnavailable),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", QueueUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", QueueUnavailable),
        ("CLUSTERDOWN The cluster is down", QueueUnavailable),
        ("TRYAGAIN Multiple keys request during rehashing of slot", QueueUnavailable),
        ("ERR a refusal of a later release", QueueUnavailable),
        ("ERR Protocol error: invalid bulk length", QueueRejected),
        ("ERR unknown command 'EVALSHA'", QueueRejected),
    ],
)
async def test_server_errors_are_transient_unless_a_retry_is_useless(said: str, kind: type[QueueError]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            setup = data.count(b"CLIENT") + data.count(b"SELECT") + data.count(b"HELLO")
            writer.write(b"+OK\r\n" * setup or f"-{said}\r\n".encode())
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = RedisAddress.parse(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    link = Link(address, "test", timeout=5, connect_timeout=5)
    with pytest.raises(QueueError) as raised:
        await link.run(scripts().now, ["meta"])
    assert type(raised.value) is kind
    await link.close()
    await ended.wait()
    server.close()


async def test_demoted_primary_is_refused_and_used_again_after_promotion(opened: Open) -> None:
    primary, other = servers.new_server(servers.any_kind()), servers.new_server(servers.any_kind())
    queue = await opened(primary.url)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    await command(primary, f"REPLICAOF 127.0.0.1 {other.port}")
    with pytest.raises(QueueUnavailable, match="read-only replica"):
        await queue.publish([message("refused")])
    with pytest.raises(QueueUnavailable, match="read-only replica"):
        await fetch(worker)
    with pytest.raises(QueueUnavailable, match="read-only replica"):
        await asyncio.to_thread(worker.renew)
    await command(primary, "REPLICAOF NO ONE")
    await eventually(lambda: queue.publish([message("a")]))


async def test_largest_body_is_the_limit_of_the_server(opened: Open) -> None:
    server = servers.new_server(servers.any_kind(), "--proto-max-bulk-len", "2mb")
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    largest = queue.features.max_body
    assert 1.9 * 1024 * 1024 < largest < 2 * 1024 * 1024
    body = bytes(largest)
    key = "k" * 1024
    whole = Message(id="i" * 256, event="Happened", body=body, published_at=1.0, ordering_key=key, dedupe=True)
    await queue.publish([whole])
    [claim] = await fetch(await consumer(queue))
    assert len(claim.deliveries[0].body) == largest
    with pytest.raises(MessageTooLarge, match="too_large has"):
        await queue.publish([Message(id="too_large", event="Happened", body=body + b"1", published_at=1.0)])
    assert (await opened(server.url, max_body=1000)).features.max_body == 1000


@pytest.mark.parametrize("ordered", [False, True])
async def test_ids_keys_and_names_of_any_characters_are_kept_unchanged(opened: Open, ordered: bool) -> None:
    queue = await opened()
    odd = [
        "{}",
        "a b",
        "\r\n",
        "'\"",
        "*?[",
        "\x01\x7f",
        "\u20ac\U0001f600\u200e",
        "1",
        "-1",
        "nil",
        ":" * 3,
        "é" * 500,
    ]
    events = [f"event {it[:60]}" for it in odd]
    await queue.declare([subscription("odd {name}: *", ordered=ordered, events=events)], [])
    worker = await consumer(queue, "odd {name}: *")
    sent = [message(it[:100], key=it, event=event, dedupe=True) for it, event in zip(odd, events, strict=True)]
    await queue.publish(sent)
    await queue.publish(sent)
    outcomes = itertools.cycle([Outcome.RETRY, Outcome.PARK, Outcome.DEAD])
    claims = await fetch(worker, "odd {name}: *")
    assert sorted(it.deliveries[0].ordering_key or "" for it in claims) == sorted(odd)
    assert await worker.settle([end(it, next(outcomes), error="no") for it in claims]) == []
    assert await worker.unpark({"odd {name}: *": events}) == len(odd) // 3
    assert await queue.retry_dead([it.id for it in await queue.dead_letters()]) == len(odd) // 3
    again = await fetch(worker, "odd {name}: *")
    found = {(it.message_id, it.ordering_key, it.event) for claim in again for it in claim.deliveries}
    assert found == {(it.id, it.ordering_key, it.event) for it in sent}


def test_server_error_that_contains_the_password_is_not_shown() -> None:
    said = ResponseError("unknown command 'AUTH', with args beginning with: 'ada' 'hunter2'")
    assert str(explain(said, "host:1")) == "Redis at host:1 refuses: unknown command 'AUTH'"


@pytest.mark.parametrize("answers", [b"", b"+OK\r\n", b"no Redis\r\n"])
async def test_connection_lost_within_the_handshake_is_unavailable(answers: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SETNAME")
        writer.write(answers)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = Link(RedisAddress.parse(f"redis://:secret@127.0.0.1:{port}"), "test", timeout=1, connect_timeout=1)
        with pytest.raises(QueueUnavailable, match="cannot be reached"):
            await link.command("PING")
        await link.close()
