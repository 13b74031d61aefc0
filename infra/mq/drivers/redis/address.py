"""The address of the Redis server, parsed from `mq.redis.url`: host or socket, credentials and TLS."""

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis import connection as client
from redis.asyncio.connection import RedisSSLContext
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.mq.errors import QueueUnavailable

_CLASSES = {"redis": client.Connection, "rediss": client.SSLConnection, "unix": client.UnixDomainSocketConnection}

_FORM = (
    "use redis://user:password@host:port/number, rediss://... with TLS, or unix:///path; user, password, port and "
    "number are optional, and special characters in user and password are percent-encoded"
)
_NUMBER = re.compile(r"[0-9]{1,5}")
_SHARED_OPTIONS = frozenset({"db", "username", "password"})
_TLS_OPTIONS = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
        *("ssl_cert_reqs", "ssl_check_hostname"),
    }
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A server, and the client's options for it. Each option is set here, so that no default of the client applies."""

    scheme: str
    where: str
    """The address for error messages, without user and password."""

    options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        """Return the address that a URL names.

        Raises:
            QueueUnavailable: `url` is not the URL of a Redis server; the message does not show its password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            named = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:  # the error may quote a part of the password as the port
            raise QueueUnavailable(f"mq.redis.url is not the URL of a Redis server; {_FORM}") from None
        if parts.scheme not in _CLASSES or parts.fragment:
            raise QueueUnavailable(f"mq.redis.url is not the URL of a Redis server; {_FORM}")
        _check_options(parts.scheme, named)
        host = parts.hostname
        if parts.scheme == "unix" and not parts.path.strip("/"):
            raise QueueUnavailable(f"mq.redis.url names no socket; {_FORM}")
        if parts.scheme != "unix":
            if not host:
                raise QueueUnavailable(f"mq.redis.url names no host; {_FORM}")
            if parts.path not in {"", "/"} and not _NUMBER.fullmatch(parts.path[1:]):
                raise QueueUnavailable(f"mq.redis.url: the path must be the number of a database; {_FORM}")
        try:
            options: dict[str, Any] = dict(client.parse_url(url))  # type: ignore[no-untyped-call]  # of the client
        except ValueError:
            raise QueueUnavailable(f"mq.redis.url: the value of an option is invalid; {_FORM}") from None
        options.pop("connection_class", None)
        if parts.scheme != "unix":
            _check_host(options["host"])
            options.setdefault("port", 6379)
        shown = parts.path if parts.scheme == "unix" else f"{host}:{port or 6379}"
        return cls(parts.scheme, shown, options)

    @property
    def socket(self) -> str | None:
        """The path of the server's Unix socket; None if it is reached by `host` and `port`."""
        return self.options.get("path")

    @property
    def host(self) -> str:
        """The server's host name or address."""
        return str(self.options["host"])

    @property
    def port(self) -> int:
        """The server's TCP port."""
        return int(self.options["port"])

    @property
    def login(self) -> list[tuple[str | int, ...]]:
        """The commands that authenticate and select the database on a new connection."""
        user, password = self.options.get("username"), self.options.get("password") or ""
        commands: list[tuple[str | int, ...]] = []
        if user or password:
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if database := self.options.get("db"):
            commands.append(("SELECT", database))
        return commands

    def tls(self) -> ssl.SSLContext | None:
        """Return a new TLS context for a connection; None if the address requires no TLS.

        Raises:
            OSError: a certificate or key cannot be read.
        """
        if self.scheme != "rediss":
            return None
        prefix = "ssl_"
        given = {name.removeprefix(prefix): it for name, it in self.options.items() if name.startswith(prefix)}
        return RedisSSLContext(**{"cert_reqs": "required", "check_hostname": True, **given}).get()

    def blocking_connection(self, name: str, *, timeout: float) -> client.AbstractConnection:
        """Return a new connection for a thread. It raises after `timeout` seconds, and never retries."""
        made: client.AbstractConnection = _CLASSES[self.scheme](
            **{
                **self.options,
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
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),
            }
        )
        return made


def _check_host(host: str) -> None:
    try:
        valid = "\0" not in host and bool(host.encode("idna"))  # as a connection encodes it
    except UnicodeError:
        valid = False
    if not valid:
        raise QueueUnavailable(f"mq.redis.url: the host name is invalid; {_FORM}")


def _check_options(scheme: str, named: Sequence[tuple[str, str]]) -> None:
    known = sorted(_SHARED_OPTIONS | (_TLS_OPTIONS if scheme == "rediss" else frozenset()))
    seen: set[str] = set()
    for name, value in named:
        if name not in known:
            near = get_close_matches(name.lower(), known, 1)
            # An unknown name may be a part of a password, so it is shown only if it resembles an option.
            guess = f" {name!r}; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(known)}"
            raise QueueUnavailable(f"mq.redis.url: unknown option{guess}")
        if name in seen:
            raise QueueUnavailable(f"mq.redis.url: the option {name!r} is given twice; remove one")
        if not value:
            raise QueueUnavailable(f"mq.redis.url: the option {name!r} is empty; remove it")
        if name == "db" and not _NUMBER.fullmatch(value):
            raise QueueUnavailable("mq.redis.url: the option 'db' must be a number")
        seen.add(name)
