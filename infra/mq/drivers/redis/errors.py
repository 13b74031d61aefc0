"""What can go wrong between here and the server, in one line for people."""

from redis import exceptions as redis_errors

from infra.mq.errors import QueueError, QueueIndeterminate, QueueRejected, QueueUnavailable

_SAID = (
    ("NOAUTH", "it wants a password: put it into mq.redis.url, as redis://:PASSWORD@host:6379"),
    ("WRONGPASS", "it refuses this username or password: correct mq.redis.url"),
    ("NOPERM", "this user may not do that: its ACL needs all commands on the keys and channels of mq.namespace"),
    ("READONLY", "it is a read-only replica: put the primary's address into mq.redis.url"),
    ("OOM", "its memory is full (maxmemory): let workers catch up, or give it more"),
    ("LOADING", "it is still loading its data"),
    ("MISCONF", "it cannot save its data and refuses writes: look into its log"),
    ("NOREPLICAS", "it has fewer replicas than min-replicas-to-write asks for"),
    ("MASTERDOWN", "it has lost its primary"),
    ("BUSY", "it is busy with a script"),
    ("CLUSTERDOWN", "its cluster is down"),
    ("invalid username-password", "it refuses this username or password: correct mq.redis.url"),
    ("Authentication required", "it wants a password: put it into mq.redis.url, as redis://:PASSWORD@host:6379"),
)
"""What servers say before they have done anything, and what it means for people."""


class Lost(Exception):
    """The connection broke, or no answer came in time, after a request had been sent."""


def explain(error: Exception, where: str) -> QueueError:
    """Return what an answer or a failure of the server means for a caller whose request changed nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    for sign, meaning in _SAID:
        if sign in said:
            return QueueUnavailable(f"Redis at {where}: {meaning}")
    if isinstance(error, redis_errors.AuthenticationError):
        return QueueUnavailable(f"Redis at {where} refuses the username or password: correct mq.redis.url")
    if isinstance(error, redis_errors.ResponseError):
        return QueueRejected(f"Redis at {where} refuses: {said}")
    return QueueUnavailable(f"Redis at {where} cannot be reached: {said}")


def lost(error: Exception, where: str) -> QueueIndeterminate:
    """Return what a lost answer means for a caller whose request may have changed something."""
    return QueueIndeterminate(f"the connection to Redis at {where} was lost: {error}")
