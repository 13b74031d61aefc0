"""What `db.url` says about a PostgreSQL database: where it is, and how it is to be used."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from sqlalchemy import URL

from infra.db.errors import DatabaseError

EXAMPLE = "postgresql://user:password@host:5432/name"

Switch = Literal["auto", "on", "off"]

_HANDED_ON = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"})
"""Options that the driver understands as libpq does."""

_MOST = 1e6
"""Of anything that an option counts or times."""

_OWN = frozenset({"application_name", "pool_size", "connect_timeout", "command_timeout", "prepared_statements"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A PostgreSQL database, and how this process uses it. Times are in seconds."""

    dsn: str = field(repr=False)
    """For the driver; with the password."""

    where: str
    """For people; without it."""

    database: str
    user: str | None
    application_name: str = "beneath"
    pool_size: int = 10
    """How many connections transactions and reads share at most."""

    connect_timeout: float = 10.0
    command_timeout: float = 60.0
    """After how long a statement is cancelled; 0 is never."""

    prepared_statements: Switch = "auto"
    """Whether statements are prepared once per connection; "auto": unless a pooler such as PgBouncer is in between."""


def parse(url: URL) -> Address:
    """Return what a `postgresql://` URL says.

    Raises:
        DatabaseError: it names no database, or has an unknown or a wrong option.
    """
    options = _options(url)
    host = url.host or options.get("host")
    if not host:
        raise DatabaseError(f"db.url: a PostgreSQL URL names a host; write it like {EXAMPLE}")
    if not url.database:
        raise DatabaseError(f"db.url: a PostgreSQL URL names a database after the host; write it like {EXAMPLE}")
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
            # What resembles no option may be a piece of a password.
            unknown = f"unknown option {name!r}" if near else "unknown option"
            guess = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise DatabaseError(f"db.url: {unknown} in a PostgreSQL URL{guess}")
        if not isinstance(value, str):
            raise DatabaseError(f"db.url: the option {name!r} is given {len(value)} times; leave one")
        options[name] = value
    return options


def _number(options: dict[str, str], name: str, default: float, *, least: float = 0) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = -1.0
    if not least <= value < _MOST:
        raise DatabaseError(f"db.url: the option {name!r} is a number, at least {least:g}, not {options[name]!r}")
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
            raise DatabaseError(f"db.url: the option {name!r} is auto, on or off, not {other!r}")
