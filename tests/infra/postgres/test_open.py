"""Errors of `db.url` and of the PostgreSQL server: each is explained in one line."""

import asyncio
import builtins
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import text

from infra.db import Database, DatabaseError, DatabaseUnavailable
from infra.db import dialect as db_dialect
from infra.db.postgresql import PostgreSQL
from tests import postgres_servers
from tests.postgres_servers import PASSWORD, PostgresServer
from tests.servers import free_port


def postgresql(db: Database) -> PostgreSQL:
    assert isinstance(db._dialect, PostgreSQL)
    return db._dialect


async def refusal(url: str) -> DatabaseError:
    db = Database(url, busy_timeout=1)
    with pytest.raises(DatabaseError) as raised:
        await db.open()
    assert "\n" not in str(raised.value)
    assert PASSWORD not in str(raised.value)
    await db.close()
    return raised.value


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://", "must name a host"),
        ("postgresql://user:hush@host", "must name a database after the host"),
        ("postgresql://user:hush@host/db?ssl_mode=require", "unknown option 'ssl_mode'"),
        (
            "postgresql://user:hush@host/db?SSLMODE=require",
            "'SSLMODE' in a PostgreSQL URL; did you mean",
        ),
        ("postgresql://user:hush@host/db?hush=1", "unknown option in a PostgreSQL URL; known options are appl"),
        ("postgresql://user:hush@host/db?sslmode=a&sslmode=b", "'sslmode' is given 2 times"),
        ("postgresql://user:x@hush@host/db", "an @ in the user name or the password is written %40"),
        ("postgresql://user:x@host:hush/db", "db.url is not a database URL"),
        ("postgresql://user:hush@host/db?sslmod=require", "did you mean 'sslmode'?"),
        ("postgresql://user:hush@host/db?pool_size=0", "'pool_size' must be a number, at least 1, not '0'"),
        ("postgresql://user:hush@host/db?command_timeout=soon", "'command_timeout' must be a number, at least 0"),
        ("postgresql://user:hush@host/db?prepared_statements=no", "'prepared_statements' must be auto, on or off"),
        ("postgresql+psycopg://user:hush@host/db", "'postgresql+psycopg' is not supported"),
        ("postgres://user:hush@host/db", "'postgres' is not supported"),
    ],
)
def test_a_bad_url_is_one_line_that_names_the_setting(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=re.escape(message)) as raised:
        Database(url)
    assert str(raised.value).startswith("db.url")
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


def test_constructing_a_database_does_no_io() -> None:
    db = Database(
        "postgresql+asyncpg://user@nowhere.invalid/name?pool_size=3&command_timeout=0&prepared_statements=off"
    )
    assert db.dialect.name == "postgresql"
    assert db.path is None
    assert db.sqlite_warning() is None
    at = postgresql(db).address
    assert (at.where, at.database, at.user) == ("nowhere.invalid:5432", "name", "user")
    assert (at.pool_size, at.command_timeout, at.prepared_statements) == (3, 0, "off")


def test_missing_client_library_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_dialect, "find_spec", lambda _: None)
    with pytest.raises(DatabaseError, match=re.escape("pip install 'beneath-backend[postgres]'")):
        Database("postgresql://user@host/name")


def test_sqlite_needs_no_postgresql_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def without(name: str, *rest: object) -> ModuleType:
        if name.startswith("asyncpg"):
            raise ImportError(name)
        return honest(name, *rest)  # type: ignore[arg-type]  # handed on as it came

    for name in [it for it in sys.modules if it.startswith(("asyncpg", "infra.db.postgresql"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert Database("sqlite:///data/x.db").dialect.name == "sqlite"


async def test_a_password_may_hold_any_character(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    quoted = PASSWORD.replace(" ", "%20").replace("/", "%2F").replace(":", "%3A").replace("@", "%40")
    db = Database(server.url(name, user="guarded", password=quoted))
    await db.open()
    await db.close()


async def test_wrong_password_is_refused(server: PostgresServer) -> None:
    error = await refusal(server.url(user="guarded", password="wrong"))
    assert "refuses the password of the role 'guarded'" in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)


async def test_role_without_access_is_refused(server: PostgresServer) -> None:
    assert "rejects the role" in str(await refusal(server.url(user="forbidden")))
    assert 'role "stranger" does not exist' in str(await refusal(server.url(user="stranger")))


async def test_missing_database_is_refused(server: PostgresServer) -> None:
    assert "has no database 'nowhere'; create it" in str(await refusal(server.url("nowhere")))


async def test_database_without_connect_permission_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    await server.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    assert "no permission for the database" in str(await refusal(server.url(name, user="plain")))


async def test_role_without_a_schema_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    await server.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC", name)
    error = await refusal(server.url(name, user="plain"))
    assert "may use no schema" in str(error)
    assert 'GRANT USAGE, CREATE ON SCHEMA public TO "plain"' in str(error)


async def test_tables_of_another_role_are_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    await server.execute("CREATE TABLE beneath_delivery (id integer)", name)
    error = await refusal(server.url(name, user="plain"))
    assert "no permission to read and write 'beneath_delivery'" in str(error)
    await server.execute("GRANT ALL ON beneath_delivery TO plain", name)
    db = Database(server.url(name, user="plain"))
    await db.open()
    await db.close()


async def test_read_only_database_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    await server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "default_transaction_read_only is on" in str(await refusal(url))


async def test_a_database_that_is_not_utf8_is_refused(server: PostgresServer) -> None:
    await server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    try:
        error = await refusal(server.url("latin"))
        assert "is encoded in LATIN1" in str(error)
        assert "ENCODING 'UTF8'" in str(error)
    finally:
        await server.drop_database("latin")


async def test_too_small_connection_limit_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    error = await refusal(server.url(name, user="few"))
    assert "allows 5 connections, and each process of this application may need 17" in str(error)


async def test_exhausted_connection_limit_is_unavailable(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    db = Database(server.url(name) + "?pool_size=1")
    await db.open()
    await server.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await server.execute("ALTER ROLE plain CONNECTION LIMIT 0")
    try:
        assert "no connection left" in str(await refusal(server.url(name, user="plain")))
    finally:
        await server.execute("ALTER ROLE plain CONNECTION LIMIT -1")
        await db.close()


async def test_unreachable_server_is_unavailable(server: PostgresServer) -> None:
    error = await refusal(f"postgresql://postgres@127.0.0.1:{free_port()}/name")
    assert isinstance(error, DatabaseUnavailable)
    assert "is it running, and is db.url right?" in str(error)
    assert "cannot connect" in str(await refusal("postgresql://postgres@nowhere.invalid/name"))


@pytest.mark.parametrize("said", ["the database system is in recovery mode", "the database system is starting up"])
async def test_recovering_server_is_unavailable(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    async def connect(*_: object, **__: object) -> None:
        raise asyncpg.CannotConnectNowError(said)

    monkeypatch.setattr(asyncpg, "connect", connect)
    error = await refusal("postgresql://postgres@host/name")
    assert isinstance(error, DatabaseUnavailable)
    assert f"recovering or shutting down ({said}); try again soon" in str(error)


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_silent_server_is_unavailable(silent_port: int) -> None:
    url = f"postgresql://postgres@127.0.0.1:{silent_port}/name?connect_timeout=0.2&sslmode=disable"
    assert "it does not answer" in str(await refusal(url))


async def test_server_of_another_protocol_is_unavailable(server: PostgresServer) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad PublishCall\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        error = await refusal(f"postgresql://postgres@127.0.0.1:{port}/name?sslmode=disable&connect_timeout=2")
    assert "cannot connect" in str(error)


async def test_unsupported_server_version_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.db.postgresql.OLDEST", 99)
    assert "version 99 or newer is required" in str(await refusal(url))


@pytest.mark.timeout(120)
async def test_read_only_replica_is_refused(server: PostgresServer) -> None:
    replica = await asyncio.to_thread(postgres_servers.new_replica, server)
    try:
        error = await refusal(replica.url())
        assert "is a read-only replica; point db.url at the primary" in str(error)
    finally:
        await asyncio.to_thread(replica.stop)


async def test_use_before_open_is_an_error() -> None:
    db = Database("postgresql://user@host/name")
    with pytest.raises(DatabaseError, match="not open"):
        async with db.transaction() as tx:
            await tx.connection()
    with pytest.raises(DatabaseError, match="not open"):
        async with db.read():
            pass


async def test_closed_database_is_unusable_until_opened_again(db: Database) -> None:
    engine = db._dialect.writer
    await db.open()
    assert db._dialect.writer is engine
    await db.close()
    await db.close()
    with pytest.raises(DatabaseError, match="not open"):
        async with db.read():
            pass
    await db.open()
    async with db.read() as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1


async def test_connection_has_a_statement_timeout_and_an_application_name(db: Database) -> None:
    async with db.read() as session:
        settings = "SELECT current_setting('statement_timeout'), current_setting('application_name')"
        assert (await session.execute(text(settings))).one() == ("1min", "beneath")


async def test_a_cancelled_open_leaves_no_connection(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    for steps in range(12):
        db = Database(url)
        opening = asyncio.ensure_future(db.open())
        for _ in range(steps):
            await asyncio.sleep(0.001)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        await db.close()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
    async with asyncio.timeout(5):
        while (await server.fetch(count, name))[0][0]:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)
