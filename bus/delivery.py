"""The delivery that a handler receives, and the cause from which a publish takes its correlation id."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from bus.codec import CAUSATION, CORRELATION, EXPIRES_AT, Frame

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Cause(Protocol):
    """The cause of a publish: a delivery, another publish, or a request. The publish takes over its ids."""

    @property
    def correlation_id(self) -> str | None:
        """The id shared by all messages that follow from one request or command."""
        ...

    @property
    def id(self) -> str | None:
        """The id of the message that is being handled; None outside of handlers."""
        ...


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one listener, as the handler receives it."""

    id: str
    """The message's id: the same for every listener and every attempt, so it serves as an idempotency key."""

    event: str
    """The wire name."""

    listener: str
    published_at: float
    """Seconds since the epoch."""

    attempt: int = 1
    """The number of this attempt: failures so far plus one."""

    last_attempt: bool = False
    """Whether this is the last attempt of the listener's own policy: `attempt` is `Retry.max_attempts`.

    An error with a policy of its own in `Retry.cases` may end the attempts earlier or later, and so may a crash. Sync
    and broadcast listeners have one attempt.
    """

    correlation_id: str | None = None
    """The id shared by all messages that follow from one request or command."""

    causation_id: str | None = None
    """The id of the message whose handler published this one."""

    expires_at: float | None = None
    """When the event expires, in seconds since the epoch by the queue's clock: no attempt begins from then on.

    None if it never expires, and for sync and broadcast listeners.
    """

    ordering_key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS


class Correlation(msgspec.Struct, frozen=True):
    """The cause of what is published inside a `correlation` block, as for an HTTP request or a command."""

    correlation_id: str | None
    id: str | None = None
    cause: Cause | None = None
    """The cause around the block."""


_cause: ContextVar[Cause | None] = ContextVar("beneath_bus_cause", default=None)


current_cause = _cause.get
"""Return the cause of what the calling code publishes, None without one."""

enter_cause = _cause.set
"""Set the current cause and return a token; `leave_cause(token)` restores the previous cause."""

leave_cause = _cause.reset
"""Restore the cause from before `enter_cause`."""


def causes(cause: object) -> Iterator[object]:
    """Yield a cause, and the causes around it, innermost first."""
    while cause is not None:
        yield cause
        cause = getattr(cause, "cause", None)


def current_delivery() -> Delivery | None:
    """Return the delivery whose handler the calling code runs in; None outside of handlers."""
    return next((each for each in causes(_cause.get()) if isinstance(each, Delivery)), None)


@contextmanager
def correlation(correlation_id: str) -> Iterator[None]:
    """Set the correlation id of everything that is published inside the block."""
    token = _cause.set(Correlation(correlation_id, cause=_cause.get()))
    try:
        yield
    finally:
        _cause.reset(token)


def log_context(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the current delivery and correlation id to a log entry, as a structlog processor."""
    cause = _cause.get()
    if cause is None:
        return entry
    if isinstance(cause, Delivery):
        entry.setdefault("event_id", cause.id)
        entry.setdefault("event_name", cause.event)
        entry.setdefault("listener", cause.listener)
        entry.setdefault("attempt", cause.attempt)
    if cause.correlation_id is not None:
        entry.setdefault("correlation_id", cause.correlation_id)
    return entry


def delivery_of(frame: Frame, listener: str, attempt: int = 1, max_attempts: int = 1) -> Delivery:
    """Return the delivery that a listener's handler receives with a decoded message."""
    headers = dict(frame.headers)
    expires_at = headers.pop(EXPIRES_AT, None)
    return Delivery(
        id=frame.id,
        event=frame.event,
        listener=listener,
        attempt=attempt,
        last_attempt=attempt >= max_attempts,
        published_at=frame.published_at,
        correlation_id=headers.pop(CORRELATION, frame.id),
        causation_id=headers.pop(CAUSATION, None),
        expires_at=None if expires_at is None else float(expires_at),
        ordering_key=frame.ordering_key,
        headers=headers,
    )
