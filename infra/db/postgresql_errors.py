"""Translation of PostgreSQL's errors to `DatabaseError`: what is wrong, with which server, and what to do."""

import ssl
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
from sqlalchemy.exc import DBAPIError

from infra.db.errors import CommitIndeterminate, DatabaseError, DatabaseUnavailable, TransactionRolledBack
from infra.db.postgresql_driver import CommitRefused
from infra.db.postgresql_url import Address
from infra.files import descriptors_short

OLDEST = 13
"""The oldest supported major version of PostgreSQL."""

LOCK_TIMEOUT = "55P03"

READ_ONLY = "25006"
"""A write in a read-only transaction, or on a read-only server."""

STALE = frozenset({"0A000", "26000"})
"""A prepared statement does not fit the tables any more, or is unknown to the server; a new connection helps."""

CONNECTING: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    EOFError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""The errors that the driver raises when it cannot connect or has lost its connection."""

_LOST = frozenset({"57P01", "57P02", "57P04", "57P05", "25P03", "25P04"})
"""The server ended the connection, as with every code of class 08."""

_ENDED_WHILE_IDLE = "another operation (2) is in progress"
"""The text of asyncpg's error for a connection that the server ended while it was idle; no statement was sent."""


def explain(error: BaseException, at: Address) -> DatabaseError | None:
    """Return the meaning of `error` if it is about the server, the connection or the disk; None for other errors."""
    error = original(error)
    code = sqlstate(error)
    match code:
        case "57P03":
            return DatabaseUnavailable(
                f"PostgreSQL at {at.where} is starting up, recovering or shutting down ({line(error)}); try again soon"
            )
        case "53300":
            return DatabaseUnavailable(
                f"PostgreSQL at {at.where} has no connection left ({line(error)}); raise its max_connections or the "
                "role's limit, run fewer processes, or lower pool_size in db.url"
            )
        case "53100":
            return DatabaseUnavailable(f"the disk of PostgreSQL at {at.where} is full; make room, then try again")
        case "53000" | "53200" | "53400":
            return DatabaseUnavailable(
                f"PostgreSQL at {at.where} lacks memory or another resource ({line(error)}); try again later, or give "
                "it more"
            )
        case "25006":
            return DatabaseUnavailable(
                f"PostgreSQL at {at.where} is read-only ({line(error)}): it is a replica, a demoted primary, or its "
                "default_transaction_read_only is on; point db.url at the primary"
            )
        case "57014":
            return DatabaseUnavailable(
                f"PostgreSQL at {at.where} cancelled a statement ({line(error)}); it changed nothing"
            )
    if is_lost(error):
        return DatabaseUnavailable(
            f"the connection to PostgreSQL at {at.where} was lost ({line(error)}); the transaction changed nothing"
        )
    return None


def explain_connect(error: BaseException, at: Address) -> DatabaseError | None:
    """Return the meaning of an error that occurred while connecting; None for unrelated errors."""
    error = original(error)
    role = f"role {at.user!r}" if at.user else "role"
    match sqlstate(error):
        case "28P01":
            return DatabaseError(f"db.url: PostgreSQL at {at.where} refuses the password of the {role}; correct it")
        case "28000":
            return DatabaseError(f"db.url: PostgreSQL at {at.where} rejects the {role}: {line(error)}")
        case "3D000":
            return DatabaseError(
                f"db.url: PostgreSQL at {at.where} has no database {at.database!r}; create it (`createdb`), "
                "or correct the name"
            )
        case "42501":
            return DatabaseError(
                f"db.url: the {role} has no permission for the database {at.database!r} at {at.where}: {line(error)}"
            )
    explained = explain(error, at) if sqlstate(error) in {"57P03", "53300"} else None
    if explained is not None or not isinstance(error, CONNECTING):
        return explained
    if (short := descriptors_short()) is not None:
        return DatabaseUnavailable(f"cannot connect to PostgreSQL at {at.where}: {short}")
    return DatabaseUnavailable(
        f"cannot connect to PostgreSQL at {at.where}: {_obstacle(error)}; is it running, and is db.url right?"
    )


def explain_commit(error: BaseException, at: Address) -> DatabaseError | None:
    """Return the meaning of an error of COMMIT: the transaction was rolled back, or its outcome is unknown."""
    error = original(error)
    if isinstance(error, CommitRefused):
        return TransactionRolledBack(
            "PostgreSQL rolled the transaction back, for a statement in it had failed and its error was caught; "
            "put `async with db.savepoint():` around what may fail"
        )
    if not_sent(error):
        return DatabaseUnavailable(
            f"the connection to PostgreSQL at {at.where} was lost before COMMIT; nothing was kept"
        )
    if is_lost(error):
        return CommitIndeterminate(
            f"the connection to PostgreSQL at {at.where} was lost during COMMIT ({line(error)}): "
            "the transaction may be committed or not"
        )
    return explain(error, at)


def original(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy's error wraps."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    cause = error.__cause__
    known = asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
    return cause if cause is not None and isinstance(cause, known) else error


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE code of an error of the server; "" for any other error."""
    code: Any = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else ""


def is_lost(error: BaseException) -> bool:
    """Return whether `error` means that the connection has ended or does not answer."""
    code = sqlstate(error)
    if code:
        return code in _LOST or code.startswith("08")
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error) and not isinstance(
            error, ValueError
        )  # a ValueError may quote a value with this word
    return isinstance(error, OSError | TimeoutError | EOFError) or _ended_while_idle(error)


def _obstacle(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).partition("\n")[0]
    return line(error)


def not_sent(error: BaseException) -> bool:
    """Return whether the connection was lost before the statement was sent."""
    return isinstance(error, asyncpg.InterfaceError) or _ended_while_idle(error)


def _ended_while_idle(error: BaseException) -> bool:
    return isinstance(error, asyncpg.InternalClientError) and _ENDED_WHILE_IDLE in str(error)


def line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return str(error).partition("\n")[0] or type(error).__name__
