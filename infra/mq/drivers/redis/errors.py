"""What can go wrong between here and the server, in one line for people."""

from redis import exceptions as redis_errors

from infra.files import descriptors_short
from infra.mq.errors import QueueError, QueueIndeterminate, QueueRejected, QueueUnavailable

_UNKNOWN = "it wants a password: put it into mq.redis.url, as redis://:PASSWORD@host:6379"
_REFUSED = "it refuses this username or password: correct mq.redis.url"
_FORBIDDEN = "this user may not do that: its ACL must allow @read, @write, @scripting, publish and subscribe here"

_MEANS: tuple[tuple[type[Exception], str], ...] = (
    (
        redis_errors.NoPermissionError,
        _FORBIDDEN,
    ),
    (redis_errors.ReadOnlyError, "it is a read-only replica: put the primary's address into mq.redis.url"),
    (redis_errors.OutOfMemoryError, "its memory is full (maxmemory): let workers catch up, or give it more"),
    (redis_errors.BusyLoadingError, "it is still loading its data"),
    (redis_errors.MasterDownError, "it has lost its primary"),
    (redis_errors.ClusterDownError, "its cluster is down"),
)
"""What the client's errors mean for people: what a server answers before it has done anything."""

_SAID = (
    ("NOAUTH", _UNKNOWN),
    ("Authentication required", _UNKNOWN),
    ("WRONGPASS", _REFUSED),
    ("invalid username-password", _REFUSED),
    ("MISCONF", "it cannot save its data and refuses writes: look into its log"),
    ("NOREPLICAS", "it has fewer replicas than min-replicas-to-write asks for"),
    ("BUSY ", "it is busy with a script"),
    ("NOSCRIPT", "it forgot its scripts"),
    ("max number of clients reached", "it has no room for another connection (maxclients)"),
)
"""The same for what the client has no error of its own for."""

_FINAL = (
    "unknown command",
    "wrong number of arguments",
    "Protocol error",
    "invalid bulk length",
    "exceeds maximum allowed size",
    "DB index is out of range",
    "invalid DB index",
    "SELECT is not allowed",
)
"""What a server answers that will not do it however often it is asked; of everything else, nobody knows that."""

ANSWERS = (redis_errors.ResponseError, redis_errors.BusyLoadingError)
"""Errors that are the server's answer; nothing was done."""


class Misconfigured(QueueUnavailable):
    """It will not get better by waiting: somebody has to change a setting, here or at the server."""


class Lost(Exception):
    """The connection broke, or no answer came in time, after a request had been sent."""


def explain(error: Exception, where: str) -> QueueError:
    """Return what an answer or a failure of the server means for a caller whose request changed nothing."""
    # A server that does not know AUTH quotes the password.
    said = " ".join(str(error).partition(", with args beginning with")[0].split()) or type(error).__name__
    for kind, meaning in _MEANS:
        if isinstance(error, kind):
            return _kind(meaning)(f"Redis at {where}: {meaning}")
    for sign, meaning in _SAID:
        if sign in said:
            return _kind(meaning)(f"Redis at {where}: {meaning}")
    if isinstance(error, redis_errors.AuthenticationError):
        return Misconfigured(f"Redis at {where}: {_REFUSED}")
    if isinstance(error, redis_errors.ResponseError):
        kind = QueueRejected if any(it in said for it in _FINAL) else QueueUnavailable
        return kind(f"Redis at {where} refuses: {said}")
    short = descriptors_short() if isinstance(error, OSError | redis_errors.ConnectionError) else None
    return QueueUnavailable(f"Redis at {where} cannot be reached: {short or said}")


def lost(error: Exception, where: str) -> QueueIndeterminate:
    """Return what a lost answer means for a caller whose request may have changed something."""
    return QueueIndeterminate(f"the connection to Redis at {where} was lost: {error}")


def _kind(meaning: str) -> type[QueueUnavailable]:
    return Misconfigured if meaning in {_UNKNOWN, _REFUSED, _FORBIDDEN} else QueueUnavailable
