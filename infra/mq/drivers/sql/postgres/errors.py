"""What PostgreSQL's errors mean to a queue."""

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
"""Raised by our own function: the worker is registered no more."""

CLAIM_VOID = "BN002"
"""Raised by our own function: the worker gave this claim up before it arrived."""

RETRYABLE = frozenset({"40001", "40P01", *STALE})
"""PostgreSQL chose this one to be undone so that others could go on, or wants its statement prepared anew."""

_MISSING = frozenset({"42P01", "42883", "42703", "3F000"})
_TOO_LARGE = frozenset({"54000"})


Held = Literal["keys", "ids", "registry"]
"""What another transaction may hold: ordering keys, ids of messages with `dedupe`, or something that all need."""


class KeyBusy(QueueUnavailable):
    """Another transaction held what was needed for too long; nothing was changed."""

    def __init__(self, text: str, held: Held = "registry") -> None:
        super().__init__(text)
        self.held: Held = held


def is_spent(error: BaseException) -> bool:
    """Whether the connection on which `error` was raised should not be used again."""
    return is_lost(error) or sqlstate(original(error)) in {READ_ONLY, *STALE}


def queue_error(error: BaseException, db: PostgreSQL, *, writing: bool) -> QueueError:
    """Return what `error` means to a user of the queue, in one line; `writing`: outside any transaction."""
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
        return QueueClosed("this worker was taken for dead: its claims were given to others")
    if code == CLAIM_VOID:
        return QueueUnavailable("this claim was given up before it arrived; nothing was claimed")
    if code in _MISSING:
        return QueueUnavailable(f"{where}: the queue's tables are missing: run `beneath migrate up`")
    if code == LOCK_TIMEOUT:
        text = f"{where}: another transaction held what was needed for too long; try again"
        return KeyBusy(text, _held(error))
    if code in _TOO_LARGE:
        return MessageTooLarge(f"{where}: a message is larger than PostgreSQL can hold ({line(error)})")
    if code[:2] in {"22", "23"} or (not code and isinstance(error, ValueError | OverflowError | TypeError)):
        return QueueRejected(f"{where}: {line(error)}")
    return QueueUnavailable(str(db.explain(error) or f"{where}: {line(error)}"))


def _held(error: BaseException) -> Held:
    """Return what was held, by the statement that waited for it."""
    context = str(getattr(error, "context", None) or "")
    if "beneath_dedupe" in context or "beneath_accepted" in context:
        return "ids"
    return "keys" if "beneath_lock_keys" in context or "beneath_delivery" in context else "registry"
