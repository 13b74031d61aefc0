"""What a handler may know about the event in its hands, and what passes from cause to effect."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from bus.codec import CAUSATION, CORRELATION, Frame

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Cause(Protocol):
    """What a publish was made in reaction to; it hands on its ids."""

    @property
    def correlation_id(self) -> str | None:
        """Shared by everything that one outside request set off."""
        ...

    @property
    def id(self) -> str | None:
        """The id of the message in whose handling the publish happens; None outside of any."""
        ...


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way through one listener."""

    id: str
    """The message's id: the same for every listener and every attempt, so it serves as an idempotency key."""

    event: str
    """The wire name."""

    listener: str
    published_at: float
    """Seconds since the epoch."""

    attempt: int = 1
    """1 for the first; failures so far plus one."""

    correlation_id: str | None = None
    """Shared by everything that one outside request set off."""

    causation_id: str | None = None
    """The id of the message whose handling published this one."""

    ordering_key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS


class Correlation(msgspec.Struct, frozen=True):
    """The cause that an HTTP request or a command line call is."""

    correlation_id: str | None
    id: str | None = None
    cause: Cause | None = None
    """What the block that made it runs in."""


_cause: ContextVar[Cause | None] = ContextVar("beneath_bus_cause", default=None)


current_cause = _cause.get
"""Return what a publish made here would be caused by."""

enter_cause = _cause.set
"""Make a cause the present one; `leave_cause(token)` undoes it."""

leave_cause = _cause.reset
"""Bring back the cause from before `enter_cause`."""


def handled_here() -> Delivery | None:
    """Return the delivery in whose handling the calling code runs; None outside of any."""
    cause: object = _cause.get()
    while cause is not None and not isinstance(cause, Delivery):
        cause = getattr(cause, "cause", None)
    return cause


@contextmanager
def correlation(correlation_id: str) -> Iterator[None]:
    """Give everything published inside the block this correlation id."""
    token = _cause.set(Correlation(correlation_id, cause=_cause.get()))
    try:
        yield
    finally:
        _cause.reset(token)


def log_context(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add to a structlog entry which delivery it was written in; read only when something is logged."""
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


def delivery_of(frame: Frame, listener: str, attempt: int = 1) -> Delivery:
    """Return what a handler gets to know about a message that came over the wire."""
    headers = dict(frame.headers)
    return Delivery(
        id=frame.id,
        event=frame.event,
        listener=listener,
        attempt=attempt,
        published_at=frame.published_at,
        correlation_id=headers.pop(CORRELATION, frame.id),
        causation_id=headers.pop(CAUSATION, None),
        ordering_key=frame.ordering_key,
        headers=headers,
    )
