"""A connection to the server: TLS, login, answers in parts, and its end."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis
import pytest
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError, ResponseError

from infra.mq.drivers.redis.address import RedisAddress
from infra.mq.drivers.redis.connection import KEEPALIVE, RedisConnection
from infra.mq.drivers.redis.link import Link
from infra.mq.errors import QueueUnavailable

ANSWERS = {
    b"PING": [b"+PO", b"NG\r\n"],
    b"EVALSHA": [b"-NOSCRIPT No matching script.\r\n"],
    b"GET": [b"$70000\r\n", b"x" * 30000, b"x" * 40000, b"\r\n"],
    b"BLPOP": [],
    b"TWICE": [b"+ONE\r\n+TWO\r\n"],
    b"BAD": [b"-ERR unknown command\r\n:1\r\n"],
}
"""The answers of the test server to some commands, each in the parts in which they arrive; others get OK."""


class RecordingServer:
    """A server that records its commands, and closes the connection at QUIT."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.port = 0
        self.handlers: set[asyncio.Task[None]] = set()
        self.reading = asyncio.Event()
        """Cleared by a test to let requests wait in the network."""

        self.reading.set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self.answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader(notEnoughData=None)
        while data := await reader.read(65536):
            await self.reading.wait()
            parser.feed(data)
            while (command := parser.gets()) is not None:
                self.commands.append(command)
                if command[0] == b"QUIT":
                    return
                for part in ANSWERS.get(command[0], [b"+OK\r\n"]):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[RecordingServer]:
    server = RecordingServer()
    async with await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
        await asyncio.wait(server.handlers)


async def ask(connection: RedisConnection, *command: str) -> object:
    connection.send_command(*command)
    return await connection.read()


async def test_connection_logs_in_selects_the_database_and_names_itself() -> None:
    async with serving() as server:
        connection = RedisConnection(RedisAddress.parse(f"redis://ada:s%40t@127.0.0.1:{server.port}/3"), "here")
        await connection.connect()
        await connection.connect()
        assert server.commands == [[b"AUTH", b"ada", b"s@t"], [b"SELECT", b"3"], [b"CLIENT", b"SETNAME", b"here"]]
        connection.close()
        connection = RedisConnection(RedisAddress.parse(f"redis://:alone@127.0.0.1:{server.port}"), "there")
        await connection.connect()
        assert server.commands[3:] == [[b"AUTH", b"alone"], [b"CLIENT", b"SETNAME", b"there"]]
        connection.close()


async def test_tls_requires_a_trusted_certificate(server_tls: ssl.SSLContext, certificate: Path) -> None:
    async with serving(server_tls) as server:
        trusting = RedisAddress.parse(f"rediss://localhost:{server.port}?ssl_ca_certs={certificate}")
        connection = RedisConnection(trusting, "trusting")
        await connection.connect()
        assert await ask(connection, "PING") == b"PONG"
        connection.close()
        doubting = RedisConnection(RedisAddress.parse(f"rediss://localhost:{server.port}"), "doubting")
        with pytest.raises(ssl.SSLCertVerificationError):
            await doubting.connect()
        assert not doubting.is_connected
        wrong_name = RedisAddress.parse(f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificate}")
        with pytest.raises(ssl.SSLCertVerificationError):
            await RedisConnection(wrong_name, "doubting").connect()


async def test_answers_in_several_parts_are_read_to_their_end() -> None:
    async with serving() as server:
        connection = RedisConnection(RedisAddress.parse(f"redis://127.0.0.1:{server.port}"), "reader")
        await connection.connect()
        before = connection.received
        assert await ask(connection, "GET", "large") == b"x" * 70000
        assert connection.received - before == len("$70000\r\n") + 70000 + len("\r\n")
        connection.send_command("PING")
        connection.send_command("PING")
        assert [await connection.read(), await connection.read()] == [b"PONG", b"PONG"]
        connection.close()


async def test_errors_of_the_server_are_raised_and_leave_the_connection_usable() -> None:
    async with serving() as server:
        connection = RedisConnection(RedisAddress.parse(f"redis://127.0.0.1:{server.port}"), "asker")
        await connection.connect()
        with pytest.raises(NoScriptError):
            await ask(connection, "EVALSHA", "00", "0")
        with pytest.raises(ResponseError, match="unknown command"):
            await ask(connection, "BAD")
        assert await connection.read() == 1
        assert await ask(connection, "PING") == b"PONG"
        connection.close()


async def test_answer_without_a_request_is_not_taken_for_the_next_one() -> None:
    async with serving() as server:
        address = RedisAddress.parse(f"redis://127.0.0.1:{server.port}")
        link = Link(address, "asker", timeout=30, connect_timeout=30)
        assert await link.command("TWICE") == b"ONE"
        assert await link.command("PING") == b"PONG"
        assert link.connections == 2
        await link.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_unsent_bytes_of_a_large_request_are_counted(
    server_tls: ssl.SSLContext, certificate: Path, scheme: str
) -> None:
    options = f"?ssl_ca_certs={certificate}" if scheme == "rediss" else ""
    async with serving(server_tls if scheme == "rediss" else None) as server:
        connection = RedisConnection(RedisAddress.parse(f"{scheme}://localhost:{server.port}{options}"), "sender")
        await connection.connect()
        body = bytes(range(256)) * 2**17
        server.reading.clear()
        connection.send_command("SET", "large", body)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(body) / 2 < connection.unsent < len(body) * 2
        server.reading.set()
        assert await connection.read() == b"OK"
        assert connection.unsent < len(body) / 2
        assert server.commands[-1] == [b"SET", b"large", body]
        assert await ask(connection, "PING") == b"PONG"
        connection.close()


async def test_small_request_is_sent_after_a_large_one() -> None:
    async with serving() as server:
        connection = RedisConnection(RedisAddress.parse(f"redis://127.0.0.1:{server.port}"), "sender")
        await connection.connect()
        server.reading.clear()
        connection.send_command("SET", "large", bytes(2**24))
        connection.send_command("PING")
        server.reading.set()
        assert [await connection.read(), await connection.read()] == [b"OK", b"PONG"]
        connection.close()


async def test_idle_connection_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Recorded(socket.socket):
        def connect(self, address: object) -> None:
            made.append(self)
            super().connect(address)  # type: ignore[arg-type]  # as it was given

    async with serving() as server:
        monkeypatch.setattr(socket, "socket", Recorded)
        connection = RedisConnection(RedisAddress.parse(f"redis://127.0.0.1:{server.port}"), "idle")
        await connection.connect()
        assert made[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert made[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert made[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == KEEPALIVE["TCP_KEEPINTVL"]
        connection.close()


@pytest.mark.parametrize("host", ["a..b", "a%00b", "x" * 64])
def test_host_name_that_cannot_exist_is_refused(host: str) -> None:
    with pytest.raises(QueueUnavailable, match="host name is invalid"):
        RedisAddress.parse(f"redis://:secret@{host}:6379")


@pytest.mark.parametrize("closed_by", ["us", "server"])
async def test_end_of_a_connection_ends_a_waiting_read(closed_by: str) -> None:
    async with serving() as server:
        connection = RedisConnection(RedisAddress.parse(f"redis://127.0.0.1:{server.port}"), "waiter")
        await connection.connect()
        reading = asyncio.create_task(ask(connection, "BLPOP", "list", "0"))
        await asyncio.sleep(0)
        if closed_by == "us":
            connection.close()
        else:
            connection.send_command("QUIT")
        with pytest.raises(LostConnection, match="closed"):
            await reading
        assert not connection.is_connected
        with pytest.raises(LostConnection):
            connection.send_command("PING")
        await connection.connect()
        assert await ask(connection, "PING") == b"PONG"
        connection.close()
