"""Connections to PostgreSQL: a typed interface to asyncpg, timeouts, and the detection of poolers."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import asyncpg  # type: ignore[import-untyped]  # it has no types; `Driver` is its typed part

from infra.db.postgresql_url import Address
from infra.keepalive import enable_keepalive

CANCEL_CHECK = 2000
"""Milliseconds between the server's checks that the client of a running statement is still connected."""

CLIENT_MARGIN = 5.0
"""Seconds that this process waits for a statement beyond the server's own limit."""

CLOSE_TIMEOUT = 1.0
"""Seconds that this process waits for a connection to be closed in order."""

ROLLBACK_TIMEOUT = 1.0
"""Seconds that this process waits for a ROLLBACK before it closes the connection, which rolls back too. A cancelled
handler should end before its claims are taken over, which is a fifth of a lease later."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 5, 5, 3
"""TCP keepalive at both ends: seconds before the first probe, seconds between probes, and number of probes."""

DEAD_AFTER = KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_COUNT
"""Seconds after which a peer that acknowledges nothing is considered dead: a cut network sends no error."""

_SINCE_CHECKS = (14, 0)
"""The first version of PostgreSQL that checks for disconnected clients."""


class Driver(Protocol):
    """The part of an asyncpg connection that this project uses."""

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
        """Call `callback` when the connection ends."""
        ...

    def is_closed(self) -> bool:
        """Return whether the connection has ended, as far as this process knows."""
        ...

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        ...

    def get_server_pid(self) -> int:
        """Return the id of the server's process, or the number that a pooler reports instead."""
        ...

    def get_server_version(self) -> Any:  # noqa: ANN401  # a named tuple
        """Return the server's version: major, minor, ..."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Cancel the running statement and close the connection in order."""
        ...

    def terminate(self) -> None:
        """Close the socket at once."""
        ...


class CommitRefused(Exception):
    """The server answered COMMIT with ROLLBACK, because a statement of the transaction had failed."""


class PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """An asyncpg connection that detects a refused COMMIT, and whose end always releases its locks."""

    __slots__ = ("_closing",)

    def __init__(self, protocol: object, transport: asyncio.Transport, *values: Any) -> None:  # noqa: ANN401  # asyncpg's own
        super().__init__(protocol, transport, *values)
        self._closing = False
        _keep_alive(transport)

    async def execute(self, query: str, *values: object, timeout: float | None = None) -> str:
        if timeout is None and query.rstrip(";") == "ROLLBACK":
            return await self._roll_back(query)
        status: str = await super().execute(query, *values, timeout=timeout)
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise CommitRefused("a statement of the transaction had failed")
        return status

    async def close(self, *, timeout: float | None = None) -> None:
        self._closing = True
        # SQLAlchemy passes a longer timeout or none; the timeout of a statement would delay a shutdown.
        with suppress(TimeoutError):
            await super().close(timeout=min(timeout or CLOSE_TIMEOUT, CLOSE_TIMEOUT))

    async def _roll_back(self, query: str) -> str:
        try:
            status: str = await super().execute(query, timeout=ROLLBACK_TIMEOUT)
        except TimeoutError:
            super().terminate()
            raise
        return status

    def terminate(self) -> None:
        # During `close` a cancellation may be on its way to the server. To end the socket now would lose it, and a
        # waiting statement would keep the locks of its transaction. `close` has a timeout of its own.
        if not self._closing:
            super().terminate()


_KEEPALIVE = {
    "TCP_KEEPIDLE": KEEPALIVE_IDLE,
    "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
    "TCP_KEEPCNT": KEEPALIVE_COUNT,
    "TCP_USER_TIMEOUT": DEAD_AFTER * 1000,
}
"""Socket options, on the systems that have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionMode:
    """The properties of connections that depend on the server and on a pooler in front of it."""

    pooled: bool
    """Whether a pooler assigns server connections per transaction, so that no state outlives a transaction."""

    prepared: bool
    """Whether prepared statements are cached."""

    version: tuple[int, int]


async def connect(
    address: Address, mode: ConnectionMode | None = None, *, limited: bool = True, **settings: str
) -> Driver:
    """Open a connection; without a `mode`, one that works through any pooler.

    With `limited`, statements are cancelled after the address's `command_timeout`. `settings` are server settings of
    this connection; a pooler gets none.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the connection cannot be opened.
    """
    limit = address.command_timeout if limited else 0.0
    cached = mode is not None and mode.prepared
    connection = await asyncpg.connect(
        address.dsn,
        timeout=address.connect_timeout,  # pyright: ignore[reportArgumentType]  # inferred from the default, 60
        command_timeout=limit + CLIENT_MARGIN if limit else None,
        statement_cache_size=100 if cached else 0,
        max_cacheable_statement_size=64 * 1024 if cached else 0,
        connection_class=PostgreSQLConnection,
        server_settings={"application_name": address.application_name, **_settings(mode, limit), **settings}
        if mode is None or not mode.pooled
        else {"application_name": address.application_name},
    )
    return cast("Driver", connection)


def _keep_alive(transport: asyncio.Transport) -> None:
    """Make the operating system end a connection when the peer does not acknowledge any more."""
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    enable_keepalive(peer, _KEEPALIVE)


async def is_pooled(connection: Driver) -> bool:
    """Return whether a pooler answers in place of the server: it does not report the server process's real id."""
    process: int = await connection.fetchval("SELECT pg_backend_pid()")
    return process != connection.get_server_pid()


async def close(connection: Driver) -> None:
    """Close a connection in any state."""
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
        # A server that does not learn of a lost client keeps its locks, by default for two hours.
        "tcp_keepalives_idle": str(KEEPALIVE_IDLE),
        "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL),
        "tcp_keepalives_count": str(KEEPALIVE_COUNT),
        "tcp_user_timeout": str(DEAD_AFTER * 1000),
    }
    if mode.version >= _SINCE_CHECKS:
        settings["client_connection_check_interval"] = str(CANCEL_CHECK)
    return settings
