"""Errors of PostgreSQL in commands: one line, no traceback, and a distinct exit code."""

import asyncio
import os
import secrets
from collections.abc import Iterator

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
import typer

from infra.mq.drivers.sql.postgres import horizon
from tests import postgres_servers
from tests.cli.conftest import Beneath, Result
from tests.postgres_servers import PASSWORD, PostgresServer
from tests.servers import free_port

COMMANDS = (["start", "all"], ["bus", "stats"], ["migrate", "up"], ["user", "create", "ada@example.com"])


@pytest.fixture(scope="module")
def server() -> PostgresServer:
    return postgres_servers.shared()


@pytest.fixture
def name(server: PostgresServer) -> Iterator[str]:
    """Return the name of a new database."""
    name = f"test_{secrets.token_hex(6)}"
    asyncio.run(server.execute(f"CREATE DATABASE {name}"))
    yield name
    asyncio.run(server.execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(autouse=True)
def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `start` return as other commands do, instead of ending the process."""

    def leave(code: int) -> None:
        raise typer.Exit(code)

    monkeypatch.setattr(os, "_exit", leave)


def refused(result: Result, part: str) -> None:
    assert result.code == 1
    assert result.out == ""
    [line] = result.err.splitlines()
    assert line.startswith("beneath: ")
    assert part in line
    assert PASSWORD not in line


def all_refuse(beneath: Beneath, url: str, part: str, commands: tuple[list[str], ...] = COMMANDS) -> None:
    for command in commands:
        refused(beneath("--set", f"db.url={url}", *command), part)


def test_unreachable_server_is_refused(beneath: Beneath) -> None:
    url = f"postgresql://postgres@127.0.0.1:{free_port()}/name"
    all_refuse(beneath, url, "is it running, and is db.url right?")
    all_refuse(beneath, "postgresql://postgres@nowhere.invalid/name", "is it running, and is db.url right?")


def test_wrong_password_unknown_role_and_missing_database_are_refused(beneath: Beneath, server: PostgresServer) -> None:
    all_refuse(beneath, server.url(user="guarded", password="wrong"), "refuses the password of the role 'guarded'")
    all_refuse(beneath, server.url(user="guarded"), "'guarded'")
    all_refuse(beneath, server.url(user="stranger"), 'role "stranger" does not exist')
    all_refuse(beneath, server.url("nowhere"), "has no database 'nowhere'; create it")


def test_pending_and_newer_migrations_are_refused(beneath: Beneath, server: PostgresServer, name: str) -> None:
    url = server.url(name)
    all_refuse(beneath, url, "run `beneath migrate up`", (COMMANDS[0], COMMANDS[1], COMMANDS[3]))
    assert beneath("--set", f"db.url={url}", "migrate", "up").code == 0
    assert beneath("--set", f"db.url={url}", "bus", "stats").code == 0
    asyncio.run(server.execute("UPDATE beneath_bus_version SET version_num = '9999'", name))
    all_refuse(beneath, url, "the database is newer than this code")


def test_role_without_permission_to_migrate_is_refused(beneath: Beneath, server: PostgresServer, name: str) -> None:
    asyncio.run(server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name))
    refused(
        beneath("--set", f"db.url={server.url(name, user='plain')}", "migrate", "up"), "migrate as the role that owns"
    )


def test_role_with_insufficient_permissions_is_refused(beneath: Beneath, server: PostgresServer, name: str) -> None:
    url = server.url(name, user="plain")
    beneath("--set", f"db.url={server.url(name)}", "migrate", "up")
    all_refuse(beneath, url, "the role 'plain' has no permission to read and write")
    for statement in (
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    ):
        asyncio.run(server.execute(statement, name))
        all_refuse(beneath, url, "the role 'plain'")


def test_read_only_database_is_refused(beneath: Beneath, server: PostgresServer, name: str) -> None:
    asyncio.run(server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    all_refuse(beneath, server.url(name), "default_transaction_read_only is on")


def test_too_small_connection_limit_is_refused(beneath: Beneath, server: PostgresServer, name: str) -> None:
    all_refuse(beneath, server.url(name, user="few"), "allows 5 connections")
    asyncio.run(server.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0"))
    all_refuse(beneath, server.url(name, user="plain"), "connection")


@pytest.mark.timeout(120)
def test_replica_is_refused(beneath: Beneath, server: PostgresServer) -> None:
    replica = postgres_servers.new_replica(server)
    try:
        all_refuse(beneath, replica.url(), "is a read-only replica; point db.url at the primary")
    finally:
        replica.stop()


def test_stats_names_the_transaction_that_keeps_dead_rows(
    beneath: Beneath, server: PostgresServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "LONG", 0.0)
    assert beneath("--set", f"db.url={server.url(name)}", "migrate", "up").code == 0
    with asyncio.Runner() as runner:
        report = runner.run(asyncpg.connect(server.url(name), server_settings={"application_name": "report"}))
        runner.run(report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM beneath_delivery"))
        result = beneath("--set", f"db.url={server.url(name)}", "bus", "stats", "--json")
        runner.run(report.close())
    assert (result.code, result.out) == (0, "[]\n")
    [line] = result.err.splitlines()
    assert line.startswith("warning: the transaction of 'report' (pid ")
