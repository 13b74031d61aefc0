"""Parsing of `db.url` for PostgreSQL: the address of the database and the options of its connections."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from sqlalchemy import URL

from infra.db.errors import DatabaseError

EXAMPLE = "postgresql://user:password@host:5432/name"

Switch = Literal["auto", "on", "off"]

_HANDED_ON = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"})
"""Options that are passed to the driver, with their meaning in libpq."""

_MOST = 1e6
"""The upper limit of numeric options."""

_OWN = frozenset({"application_name", "pool_size", "connect_timeout", "command_timeout", "prepared_statements"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a PostgreSQL database and the options of its connections. Times are in seconds."""

    dsn: str = field(repr=False)
    """The URL for the driver, with the password."""

    where: str
    """Host and port, for messages."""

    database: str
    user: str | None
    application_name: str = "beneath"
    pool_size: int = 10
    """The maximum number of connections that transactions and reads share."""

    connect_timeout: float = 10.0
    command_timeout: float = 60.0
    """The time after which a statement is cancelled; 0: never."""

    prepared_statements: Switch = "auto"
    """Whether statements are prepared once per connection; "auto": unless a pooler such as PgBouncer is in use."""


def parse(url: URL) -> Address:
    """Parse a `postgresql://` URL.

    Raises:
        DatabaseError: the URL names no host or database, or has an unknown or invalid option.
    """
    options = _options(url)
    host = url.host or options.get("host")
    if not host:
        raise DatabaseError(f"db.url: a PostgreSQL URL must name a host; write it like {EXAMPLE}")
    if not url.database:
        raise DatabaseError(f"db.url: a PostgreSQL URL must name a database after the host; write it like {EXAMPLE}")
    handed_on = {name: value for name, value in options.items() if name in _HANDED_ON}
    dsn = url.set(drivername="postgresql", query=handed_on).render_as_string(hide_password=False)
    return Address(
        dsn=dsn,
        where=f"{host}:{url.port or 5432}",
        database=url.database,
        user=url.username,
        application_name=options.get("application_name", "beneath"),
        pool_size=int(_number(options, "pool_size", 10, least=1)),
        connect_timeout=_number(options, "connect_timeout", 10, least=0.1),
        command_timeout=_number(options, "command_timeout", 60),
        prepared_statements=_switch(options, "prepared_statements"),
    )


def _options(url: URL) -> dict[str, str]:
    options: dict[str, str] = {}
    known = sorted(_HANDED_ON | _OWN)
    for name, value in url.query.items():
        if name not in known:
            near = get_close_matches(name.lower(), known, 1)
            # An option that resembles no known one may be a part of a password.
            unknown = f"unknown option {name!r}" if near else "unknown option"
            guess = f"; did you mean {near[0]!r}?" if near else f"; known options are {', '.join(known)}"
            raise DatabaseError(f"db.url: {unknown} in a PostgreSQL URL{guess}")
        if not isinstance(value, str):
            raise DatabaseError(f"db.url: the option {name!r} is given {len(value)} times; keep one")
        options[name] = value
    return options


def _number(options: dict[str, str], name: str, default: float, *, least: float = 0) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = -1.0
    if not least <= value < _MOST:
        raise DatabaseError(f"db.url: the option {name!r} must be a number, at least {least:g}, not {options[name]!r}")
    return value


def _switch(options: dict[str, str], name: str) -> Switch:
    match options.get(name, "auto"):
        case "auto":
            return "auto"
        case "on":
            return "on"
        case "off":
            return "off"
        case other:
            raise DatabaseError(f"db.url: the option {name!r} must be auto, on or off, not {other!r}")
