"""Translation of PostgreSQL's errors to queue errors."""

from typing import Literal

from infra.db import DatabaseError
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_errors import LOCK_TIMEOUT, READ_ONLY, STALE, is_lost, line, not_sent, original, sqlstate
from infra.mq.errors import (
    MessageTooLarge,
    QueueClosed,
    QueueError,
    QueueIndeterminate,
    QueueRejected,
    QueueUnavailable,
)

WORKER_DEAD = "BN001"
"""Raised by the queue's SQL function: the worker is not registered any more."""

CLAIM_VOID = "BN002"
"""Raised by the queue's SQL function: the worker voided this claim before it reached the server."""

RETRYABLE = frozenset({"40001", "40P01", *STALE})
"""Errors after which the operation is tried again: a deadlock, a conflict, or a stale prepared statement."""

_MISSING = frozenset({"42P01", "42883", "42703", "3F000"})
_TOO_LARGE = frozenset({"54000"})


Held = Literal["keys", "ids", "registry"]
"""The kind of lock that another transaction holds: ordering keys, ids of messages with `dedupe`, or the registry."""


class KeyBusy(QueueUnavailable):
    """Another transaction held a needed lock for too long; nothing was changed."""

    def __init__(self, text: str, held: Held = "registry") -> None:
        super().__init__(text)
        self.held: Held = held


def is_spent(error: BaseException) -> bool:
    """Return whether the connection on which `error` was raised must not be used again."""
    return is_lost(error) or sqlstate(original(error)) in {READ_ONLY, *STALE}


def queue_error(error: BaseException, db: PostgreSQL, *, writing: bool) -> QueueError:
    """Return the queue error for `error`, with a text of one line.

    `writing` says that the statement committed by itself, so that a lost connection makes its outcome unknown.
    """
    if isinstance(error, QueueError):
        return error
    if isinstance(error, DatabaseError):
        return QueueUnavailable(str(error))
    error = original(error)
    where = f"PostgreSQL at {db.address.where}"
    if is_lost(error):
        if writing and not not_sent(error):
            return QueueIndeterminate(f"{where}: the connection was lost before the answer came ({line(error)})")
        return QueueUnavailable(f"{where}: the connection was lost ({line(error)})")
    code = sqlstate(error)
    if code == WORKER_DEAD:
        return QueueClosed("this worker is considered dead: its claims were taken over")
    if code == CLAIM_VOID:
        return QueueUnavailable("this claim was voided before it reached the server; nothing was claimed")
    if code in _MISSING:
        return QueueUnavailable(f"{where}: the queue's tables are missing: run `beneath migrate up`")
    if code == LOCK_TIMEOUT:
        text = f"{where}: another transaction held a needed lock for too long; try again"
        return KeyBusy(text, _held(error))
    if code in _TOO_LARGE:
        return MessageTooLarge(f"{where}: a message is larger than PostgreSQL can hold ({line(error)})")
    if code[:2] in {"22", "23"} or (not code and isinstance(error, ValueError | OverflowError | TypeError)):
        return QueueRejected(f"{where}: {line(error)}")
    return QueueUnavailable(str(db.explain(error) or f"{where}: {line(error)}"))


def _held(error: BaseException) -> Held:
    """Return the kind of lock that was held, derived from the statement that waited for it."""
    context = str(getattr(error, "context", None) or "")
    if "beneath_dedupe" in context or "beneath_accepted" in context:
        return "ids"
    return "keys" if "beneath_lock_keys" in context or "beneath_delivery" in context else "registry"
