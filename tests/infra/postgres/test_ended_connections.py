"""Connections that the server has said goodbye on, before the end of them has arrived."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import text

from infra.clock import SystemClock
from infra.db import Database, DatabaseUnavailable
from infra.db.postgresql_driver import PostgreSQLConnection
from infra.mq import Message, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from tests.infra.db.tables import insert, names
from tests.infra.postgres.queues import new_store
from tests.postgres_servers import PostgresServer

TERMINATE = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend'
"""


class Tunnel:
    """A way to the server that passes on everything but, while it is `holding`, the end of a connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.opened = self.ended = 0
        self.holding = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stand between one client and the server."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, up_writer]
        self.opened += 1
        tasks = {asyncio.create_task(it) for it in (self._carry(reader, up_writer), self._back(up_reader, writer))}
        self._tasks |= tasks
        await asyncio.wait(tasks)
        self._tasks -= tasks

    async def _back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await self._carry(source, sink)
        self.ended += 1
        if not self.holding:
            sink.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()

    def close(self) -> None:
        """End everything."""
        for each in self._writers:
            each.transport.abort()


@asynccontextmanager
async def tunnel_to(port: int) -> AsyncIterator[Tunnel]:
    """Open a tunnel."""
    tunnel = Tunnel(port)
    server = await asyncio.start_server(tunnel.serve, "127.0.0.1", 0)
    tunnel.port = server.sockets[0].getsockname()[1]
    try:
        yield tunnel
    finally:
        server.close()
        tunnel.close()
        await asyncio.gather(*tunnel._tasks)


async def end_all(server: PostgresServer, url: str, tunnel: Tunnel) -> None:
    """Have the server end every connection to a database, and return when its last words have arrived."""
    tunnel.holding = True
    await server.fetch(TERMINATE, url.rpartition("/")[2])
    async with asyncio.timeout(5):
        while tunnel.ended < tunnel.opened:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    tunnel.holding = False


async def test_a_transaction_on_one_is_lost_in_plain_words_and_the_next_one_gets_another(
    server: PostgresServer, url: str, db: Database
) -> None:
    async with tunnel_to(server.port) as tunnel:
        far = Database(url.replace(str(server.port), str(tunnel.port)))
        await far.open()
        assert await names(far) == []
        await end_all(server, url, tunnel)
        with pytest.raises(DatabaseUnavailable, match="was lost"):
            async with far.transaction() as tx:
                await insert(tx, "a")
        async with far.transaction() as tx:
            await insert(tx, "b")
        assert await names(far) == ["b"]
        await far.close()


async def test_a_transaction_that_is_under_way_on_one_changed_nothing(
    server: PostgresServer, url: str, db: Database
) -> None:
    async with tunnel_to(server.port) as tunnel:
        far = Database(url.replace(str(server.port), str(tunnel.port)))
        await far.open()
        for statement in ("COMMIT", "SELECT 1"):
            with pytest.raises(DatabaseUnavailable, match="was lost"):
                async with far.transaction() as tx:
                    await insert(tx, "a")
                    await end_all(server, url, tunnel)
                    if statement != "COMMIT":
                        await tx.session.execute(text(statement))
        assert await names(far) == []
        await far.close()


async def test_what_was_read_on_one_was_read_and_its_place_in_the_pool_is_free(
    server: PostgresServer, url: str, db: Database
) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
    async with tunnel_to(server.port) as tunnel:
        far = Database(f"{url.replace(str(server.port), str(tunnel.port))}?pool_size=1", busy_timeout=0.5)
        await far.open()
        for _ in range(3):
            async with far.read() as session:
                found = (await session.execute(text("SELECT name FROM item"))).scalars().all()
                await end_all(server, url, tunnel)
            assert found == ["a"]
        await far.close()


async def test_a_server_that_does_not_answer_any_more_holds_up_nobody_who_closes(
    server: PostgresServer, url: str, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with tunnel_to(server.port) as tunnel:
        far = Database(url.replace(str(server.port), str(tunnel.port)))
        await far.open()
        assert await names(far) == []
        tunnel.holding = True
        async with asyncio.timeout(20):
            await far.close()
    assert caplog.records == []


async def test_one_that_ends_while_it_is_set_up_is_told_in_plain_words(
    url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(self: PostgreSQLConnection, *_: object, **__: object) -> None:
        raise asyncpg.InterfaceError("connection is closed")

    other = Database(url)
    await other.open()
    with monkeypatch.context() as patch:
        patch.setattr(PostgreSQLConnection, "set_type_codec", ended)
        with pytest.raises(DatabaseUnavailable, match=r"cannot connect to .*: connection is closed"):
            await names(other)
    assert await names(other) == []
    await other.close()


async def test_a_publish_on_one_is_refused_and_the_next_one_gets_another(server: PostgresServer) -> None:
    async with new_store(server) as store, tunnel_to(server.port) as tunnel:
        far = Database(store.url.replace(str(server.port), str(tunnel.port)))
        await far.open()
        queue = SqlQueue(far, clock=SystemClock())
        await queue.open()
        await queue.publish([message("a")])
        await end_all(server, store.url, tunnel)
        with pytest.raises(QueueUnavailable, match="was lost"):
            await queue.publish([message("b")])
        await queue.publish([message("c")])
        await queue.close()
        await far.close()


def message(name: str) -> Message:
    return Message(id=name, event="E", body=b"", published_at=0.0)
