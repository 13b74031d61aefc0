"""Errors of the connection and the server, explained in one line."""

from redis import exceptions as redis_errors

from infra.files import descriptors_short
from infra.mq.errors import QueueError, QueueIndeterminate, QueueRejected, QueueUnavailable

_UNKNOWN = "it requires a password: set it in mq.redis.url, as redis://:PASSWORD@host:6379"
_REFUSED = "it refuses this username or password: correct mq.redis.url"
_FORBIDDEN = (
    "this user lacks permission: its ACL must allow @read, @write, @scripting, @connection, publish, subscribe, time "
    "and info for mq.namespace"
)

_EXPLANATIONS: tuple[tuple[type[Exception], str], ...] = (
    (
        redis_errors.NoPermissionError,
        _FORBIDDEN,
    ),
    (redis_errors.ReadOnlyError, "it is a read-only replica: set the primary's address in mq.redis.url"),
    (redis_errors.OutOfMemoryError, "its memory is full: start more workers, or raise its maxmemory"),
    (redis_errors.BusyLoadingError, "it is still loading its data"),
    (redis_errors.MasterDownError, "it has lost its primary"),
    (redis_errors.ClusterDownError, "its cluster is down"),
)
"""Errors of the client for answers of a server that changed nothing, each with its explanation."""

_EXPLANATIONS_BY_TEXT = (
    ("NOAUTH", _UNKNOWN),
    ("Authentication required", _UNKNOWN),
    ("WRONGPASS", _REFUSED),
    ("invalid username-password", _REFUSED),
    ("MISCONF", "it cannot save its data and refuses writes: its log says why"),
    ("NOREPLICAS", "it has fewer replicas than min-replicas-to-write requires"),
    ("BUSY ", "it is busy with a script"),
    ("NOSCRIPT", "it has lost its scripts"),
    ("max number of clients reached", "it allows no more connections: raise its maxclients"),
)
"""Texts of further answers after which nothing was changed, each with its explanation."""

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
"""Texts of answers that a repeated request would get again; any other answer may be temporary."""

ANSWERS = (redis_errors.ResponseError, redis_errors.BusyLoadingError)
"""Errors that are an answer of the server: the request changed nothing."""


class Misconfigured(QueueUnavailable):
    """A setting, here or of the server, is wrong: repeating the call does not help."""


class AnswerLost(Exception):
    """No answer to a sent request: the connection was lost, or the answer took too long."""


def explain(error: Exception, where: str) -> QueueError:
    """Return the queue's error for an answer or a connection failure after which nothing was changed."""
    # A server without AUTH quotes the password in its answer.
    text = " ".join(str(error).partition(", with args beginning with")[0].split()) or type(error).__name__
    for kind, explanation in _EXPLANATIONS:
        if isinstance(error, kind):
            return _error_class(explanation)(f"Redis at {where}: {explanation}")
    for sign, explanation in _EXPLANATIONS_BY_TEXT:
        if sign in text:
            return _error_class(explanation)(f"Redis at {where}: {explanation}")
    if isinstance(error, redis_errors.AuthenticationError):
        return Misconfigured(f"Redis at {where}: {_REFUSED}")
    if isinstance(error, redis_errors.ResponseError):
        kind = QueueRejected if any(it in text for it in _FINAL) else QueueUnavailable
        return kind(f"Redis at {where} refuses: {text}")
    short = descriptors_short() if isinstance(error, OSError | redis_errors.ConnectionError) else None
    return QueueUnavailable(f"Redis at {where} cannot be reached: {short or text}")


def indeterminate(error: Exception, where: str) -> QueueIndeterminate:
    """Return the queue's error for a lost answer to a request that may have changed something."""
    return QueueIndeterminate(f"the connection to Redis at {where} was lost: {error}")


def _error_class(explanation: str) -> type[QueueUnavailable]:
    return Misconfigured if explanation in {_UNKNOWN, _REFUSED, _FORBIDDEN} else QueueUnavailable
