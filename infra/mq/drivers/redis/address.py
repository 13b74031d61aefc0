"""Where the server is, out of a URL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import connection as sync
from redis.asyncio import connection as asynchronous
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.mq.errors import QueueUnavailable

_ASYNC = {
    "redis": asynchronous.Connection,
    "rediss": asynchronous.SSLConnection,
    "unix": asynchronous.UnixDomainSocketConnection,
}
_SYNC = {"redis": sync.Connection, "rediss": sync.SSLConnection, "unix": sync.UnixDomainSocketConnection}

_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss://… with TLS, or unix:///PATH"


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and how to connect to it. Every option of the client is set here, so that no default decides."""

    scheme: str
    where: str
    """For people: without the password."""

    options: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL.

        Raises:
            QueueUnavailable: it is not one of a Redis server.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            options: dict[str, Any] = dict(asynchronous.parse_url(url))
        except ValueError as error:
            raise QueueUnavailable(f"mq.redis.url is not the URL of a Redis server ({error}); use {_FORM}") from None
        options.pop("connection_class", None)
        host = parts.hostname
        if parts.scheme == "unix" and not options.get("path"):
            raise QueueUnavailable(f"mq.redis.url names no socket; use {_FORM}")
        if parts.scheme != "unix":
            if not host:
                raise QueueUnavailable(f"mq.redis.url names no host; use {_FORM}")
            if parts.path not in {"", "/"} and not parts.path[1:].isdigit():
                raise QueueUnavailable(f"mq.redis.url: the database is a number, not {parts.path[1:]!r}; use {_FORM}")
            options.setdefault("port", 6379)
        shown = parts.path if parts.scheme == "unix" else f"{host}:{port or 6379}"
        return cls(parts.scheme, shown, options)

    def connection(self, name: str, *, connect_timeout: float) -> asynchronous.AbstractConnection:
        """Return a connection, not connected yet, that never retries and never times out by itself."""
        made: asynchronous.AbstractConnection = _ASYNC[self.scheme](
            **{
                **self.options,
                **_options(name),
                "socket_timeout": None,
                "socket_connect_timeout": connect_timeout,
                "retry": AsyncRetry(NoBackoff(), 0),
                "socket_read_size": 1 << 18,
            }
        )
        return made

    def blocking_connection(self, name: str, *, timeout: float) -> sync.AbstractConnection:
        """Return a connection for a thread, which gives up after `timeout` seconds and never retries."""
        made: sync.AbstractConnection = _SYNC[self.scheme](
            **{
                **self.options,
                **_options(name),
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),
            }
        )
        return made


def _options(name: str) -> dict[str, Any]:
    return {
        "protocol": 2,
        "legacy_responses": True,
        "decode_responses": False,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "health_check_interval": 0,
        "retry_on_timeout": False,
        "retry_on_error": [],
        "client_name": name,
        "driver_info": None,
        "maint_notifications_config": None,
    }
