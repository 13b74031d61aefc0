"""Connections to PostgreSQL: asyncpg behind types, and what is between this process and the server."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import asyncpg  # type: ignore[import-untyped]  # it has no types; `Driver` says what we use

from infra.db.postgresql_url import Address

CANCEL_CHECK = 2000
"""How often, in milliseconds, the server looks whether the client of a running statement is still there."""

CLIENT_MARGIN = 5.0
"""How much longer, in seconds, than the server's own limit this process waits for a statement's end."""

CLOSE_TIMEOUT = 1.0
"""How long, in seconds, this process waits for the server to see a connection end."""

ROLLBACK_TIMEOUT = 1.0
"""How long, in seconds, this process waits for a ROLLBACK: hanging up does the same, and whoever was cancelled should
have ended before others take over from it, which is a fifth of a lease later."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 5, 5, 3
"""Seconds after which the operating system asks a silent peer whether it is there, at both ends; and how often."""

DEAD_AFTER = KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_COUNT
"""Seconds after which a peer is taken for gone that acknowledges nothing: a network that is cut says nothing."""

_SINCE_CHECKS = (14, 0)
"""The first version of PostgreSQL that looks for clients that are gone."""


class Driver(Protocol):
    """What we use of an asyncpg connection."""

    async def execute(self, query: str, *values: object, timeout: float | None = None) -> str:
        """Execute a statement; return its command tag."""
        ...

    async def fetch(self, query: str, *values: object, timeout: float | None = None) -> list[Any]:
        """Return all rows."""
        ...

    async def fetchrow(self, query: str, *values: object, timeout: float | None = None) -> Any:  # noqa: ANN401  # a row
        """Return the first row, or None."""
        ...

    async def fetchval(self, query: str, *values: object, timeout: float | None = None) -> Any:  # noqa: ANN401  # a value
        """Return the first row's first value."""
        ...

    async def executemany(self, command: str, args: Sequence[Sequence[object]]) -> None:
        """Execute a statement for each set of values, all or none."""
        ...

    async def add_listener(self, channel: str, callback: Callable[..., object]) -> None:
        """Listen to notifications."""
        ...

    def add_termination_listener(self, callback: Callable[..., object]) -> None:
        """Have `callback` called when the connection ends."""
        ...

    def is_closed(self) -> bool:
        """Whether it has ended, as far as this process knows."""
        ...

    def is_in_transaction(self) -> bool:
        """Whether a transaction is under way."""
        ...

    def get_server_pid(self) -> int:
        """Return the number of the server's process, or what a pooler says instead."""
        ...

    def get_server_version(self) -> Any:  # noqa: ANN401  # a named tuple
        """Return the server's version: major, minor, ..."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye, having cancelled what was under way."""
        ...

    def terminate(self) -> None:
        """End it without saying goodbye."""
        ...


class CommitRefused(Exception):
    """COMMIT was answered by ROLLBACK, for a statement of the transaction had failed."""


class PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """An asyncpg connection that notices a COMMIT that did not, and lets go of its locks however it ends."""

    __slots__ = ("_closing",)

    def __init__(self, *values: Any, **options: Any) -> None:  # noqa: ANN401  # asyncpg's own
        super().__init__(*values, **options)
        self._closing = False

    async def execute(self, query: str, *values: object, timeout: float | None = None) -> str:
        if timeout is None and query.rstrip(";") == "ROLLBACK":
            return await self._roll_back(query)
        status: str = await super().execute(query, *values, timeout=timeout)
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise CommitRefused("a statement of the transaction had failed")
        return status

    async def close(self, *, timeout: float | None = None) -> None:
        self._closing = True
        # SQLAlchemy names a longer limit, or none: that of a statement would keep a process from stopping.
        with suppress(TimeoutError):
            await super().close(timeout=min(timeout or CLOSE_TIMEOUT, CLOSE_TIMEOUT))

    async def _roll_back(self, query: str) -> str:
        try:
            status: str = await super().execute(query, timeout=ROLLBACK_TIMEOUT)
        except TimeoutError:
            super().terminate()
            raise
        return status

    def enable_keepalive(self) -> None:
        """Have the operating system end this connection when its other end is not heard of any more."""
        peer = self._transport.get_extra_info("socket")
        if peer is None or peer.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                peer.setsockopt(socket.IPPROTO_TCP, option, value)

    def terminate(self) -> None:
        # While it is closing, a cancellation may be on its way to the server: ended now, that would be lost, and a
        # statement that waits would keep the locks of its transaction. `close` has a time limit of its own.
        if not self._closing:
            super().terminate()


_KEEPALIVE = {
    "TCP_KEEPIDLE": KEEPALIVE_IDLE,
    "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
    "TCP_KEEPCNT": KEEPALIVE_COUNT,
    "TCP_USER_TIMEOUT": DEAD_AFTER * 1000,
}
"""What the systems that have these options are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionMode:
    """How connections are made, once it is known what is between this process and the server."""

    pooled: bool
    """Whether a pooler shares the server's connections out by transaction: nothing may stay in one beyond that."""

    prepared: bool
    """Whether statements are prepared once, and kept."""

    version: tuple[int, int]


async def connect(
    address: Address, mode: ConnectionMode | None = None, *, limited: bool = True, **settings: str
) -> Driver:
    """Open a connection; without a `mode` one that works through any pooler.

    `limited` statements are cancelled after the address's `command_timeout`. `settings` are the server's, for this
    connection; a pooler gets none.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it cannot be had.
    """
    limit = address.command_timeout if limited else 0.0
    cached = mode is not None and mode.prepared
    connection = await asyncpg.connect(
        address.dsn,
        timeout=address.connect_timeout,
        command_timeout=limit + CLIENT_MARGIN if limit else None,
        statement_cache_size=100 if cached else 0,
        max_cacheable_statement_size=64 * 1024 if cached else 0,
        connection_class=PostgreSQLConnection,
        server_settings={"application_name": address.application_name, **_settings(mode, limit), **settings}
        if mode is None or not mode.pooled
        else {"application_name": address.application_name},
    )
    connection.enable_keepalive()
    return cast("Driver", connection)


async def is_pooled(connection: Driver) -> bool:
    """Return whether a pooler answers in the server's place: it cannot know which process will work for us."""
    process: int = await connection.fetchval("SELECT pg_backend_pid()")
    return process != connection.get_server_pid()


async def close(connection: Driver) -> None:
    """End a connection, whatever state it is in."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise


def _settings(mode: ConnectionMode | None, limit: float) -> dict[str, str]:
    if mode is None:
        return {}
    settings = {
        "statement_timeout": str(int(limit * 1000)),
        # A server that never hears of our end keeps the locks of our transactions, by default for two hours.
        "tcp_keepalives_idle": str(KEEPALIVE_IDLE),
        "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL),
        "tcp_keepalives_count": str(KEEPALIVE_COUNT),
        "tcp_user_timeout": str(DEAD_AFTER * 1000),
    }
    if mode.version >= _SINCE_CHECKS:
        settings["client_connection_check_interval"] = str(CANCEL_CHECK)
    return settings
