"""The publish of one event: its id, cause and headers, and its encoding to a message."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Protocol

import msgspec
import uuid_utils

from bus.codec import CAUSATION, CORRELATION, EXPIRES_AT, Frame, check_header_name, encode_frame
from bus.delivery import NO_HEADERS, Cause, Delivery
from bus.errors import InvalidEvent, PublishRejected
from bus.events import lifetime_of
from bus.listener_table import LocalListeners
from infra.failures import describe
from infra.mq import Message
from infra.mq.limits import check_delay, check_due_at, check_id, check_text, shown

MAX_HEADER_VALUE_BYTES = 2**31 - 1
"""Headers also count towards the size of their message, which is limited by `bus.max_payload`."""


def new_id() -> str:
    """Return a new message id: a UUID of version 7, so that ids sort by time."""
    return str(uuid_utils.uuid7())


class SyncPhase(Protocol):
    """The publishes of one tree of sync listeners, on a bus without a database."""

    def add(self, outgoing: "Outgoing") -> None:
        """Add a publish, in order."""
        ...

    def savepoint(self) -> int:
        """Return a mark of the publishes so far."""
        ...

    def rollback_to(self, mark: int) -> None:
        """Remove the publishes since `mark`."""
        ...

    @property
    def open(self) -> bool:
        """Whether the sync phase is running, in the current task."""
        ...


class Outgoing(msgspec.Struct):
    """The publish of one event, and the cause of what the event's sync listeners publish."""

    event: object
    local: LocalListeners
    cause: Cause | None
    published_at: float
    headers: Mapping[str, str] = NO_HEADERS
    due_at: float | None = None
    expires_in: float | None = None
    """The lifetime in seconds that the caller set; None for that of the class."""

    expires_at: float | None = None
    """When the event expires, by the queue's clock; set when the event is prepared."""

    explicit_id: str | None = None
    from_batch: bool = False
    """True for events from `publish_many`: the caller never sees their ids, so it cannot retry them by id."""

    depth: int = 0
    """The number of sync listeners that the publish is nested in."""

    sync_phase: SyncPhase | None = None
    """The publishes of the outermost publish until its sync phase ends; None with a database."""

    encoded: Message | None = None
    """The result of `message()`; None before its first call."""

    _id: str | None = None

    def nest_in(self, cause: "Outgoing") -> None:
        """Record that a sync listener of `cause` publishes this event."""
        self.depth, self.sync_phase = cause.depth + 1, cause.sync_phase

    @property
    def id(self) -> str:
        """The message's id: the caller's, or a new one."""
        if self._id is None:
            self._id = self.explicit_id or new_id()
        return self._id

    @property
    def correlation_id(self) -> str:
        """The correlation id of the cause, or the message's own id if there is none."""
        cause = self.cause
        return (cause.correlation_id if cause is not None else None) or self.id

    @property
    def name(self) -> str:
        """The event's wire name."""
        return self.local.event_type.name

    def message(self, max_body: int, *, repeatable: bool) -> Message:
        """Encode the event, store the message as `encoded`, and return it.

        The queue deduplicates a `repeatable` message, so that it may be sent twice.

        Raises:
            InvalidEvent: the event does not match its class, or cannot be encoded.
            PublishRejected: the message, headers included, is larger than `max_body` bytes.
        """
        event_type, id_, published_at, cause = self.local.event_type, self.id, self.published_at, self.cause
        name = event_type.name
        payload = event_type.encode(self.event)
        key = event_type.ordering_key(self.event) if event_type.ordered else None
        headers = {CORRELATION: id_}
        if cause is not None:
            headers = {CORRELATION: self.correlation_id}
            if (causation := cause.id) is not None:
                headers[CAUSATION] = causation
        if self.expires_at is not None:
            headers[EXPIRES_AT] = repr(self.expires_at)
        if self.headers:
            headers |= self.headers
        body = encode_frame(Frame(id_, name, event_type.version, key, published_at, headers, payload))
        if len(body) > max_body:
            raise PublishRejected(
                f"{name} has {len(body)} bytes, headers included; at most {max_body} are allowed "
                "(bus.max_payload, and the queue's own limit). Publish a reference to the data instead"
            )
        self.encoded = Message(
            id=id_,
            event=name,
            body=body,
            published_at=published_at,
            ordering_key=key,
            due_at=self.due_at,
            dedupe=repeatable or self.explicit_id is not None,
            fresh=self.explicit_id is None,
        )
        return self.encoded

    def delivery(self, listener: str) -> Delivery:
        """Return the delivery that a sync or broadcast listener of this process receives."""
        return Delivery(
            id=self.id,
            event=self.name,
            listener=listener,
            last_attempt=True,
            published_at=self.published_at,
            correlation_id=self.correlation_id,
            causation_id=self.cause.id if self.cause else None,
            ordering_key=self.encoded.ordering_key if self.encoded else self.local.event_type.ordering_key(self.event),
            headers=self.headers,
        )


def chain(outgoing: Outgoing) -> list[str]:
    """Return the names of the events that `outgoing` is nested in, and its own, outermost first."""
    names: list[str] = []
    cause: Cause | None = outgoing
    while isinstance(cause, Outgoing):
        names.append(cause.name)
        cause = cause.cause if cause.depth else None
    return names[::-1]


def valid_id(id_: object, what: str = "a message id") -> str:
    """Return `id_` if it is a valid message id; `what` names it in the error.

    Raises:
        InvalidEvent: `id_` is not valid.
    """
    try:
        return check_id(id_, what)
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def valid_lifetime(expires_in: object) -> float | None:
    """Return the lifetime of an event in seconds.

    Raises:
        InvalidEvent: it is no number of seconds or timedelta, not above 0, or longer than 100 years.
    """
    try:
        return lifetime_of(expires_in, "expires_in")
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def due_in(delay: object, now: float) -> float:
    """Return the due time, in seconds since the epoch, of an event that is delayed by `delay` from `now` on.

    Raises:
        InvalidEvent: the delay is not a number of seconds or timedelta, or is out of range.
    """
    try:
        return check_due_at(now + check_delay(delay))
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def due_when(when: object) -> float:
    """Return the due time, in seconds since the epoch, of an event that is scheduled for `when`.

    Raises:
        InvalidEvent: `when` is not a datetime with a time zone, or is out of range.
    """
    if not isinstance(when, datetime):
        raise InvalidEvent(f"a time must be a datetime with a time zone, not {shown(when)}")
    try:
        offset, seconds = when.utcoffset(), when.timestamp()
        if offset is not None:
            return check_due_at(0.0 if seconds < 0 else seconds)
    except Exception as error:  # a time zone is a class, whose code may raise anything
        raise InvalidEvent(f"{shown(when)} cannot be scheduled: {describe(error)}") from error
    raise InvalidEvent(f"{shown(when)} has no time zone: use an aware datetime, such as datetime.now(UTC)")


def valid_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return a copy of `headers` if they can go with a message.

    Raises:
        InvalidEvent: they are no mapping of str to str, hold NUL or surrogates, or a name is too long or the bus's own.
    """
    if not isinstance(headers, Mapping):
        raise InvalidEvent(f"headers must map str to str, not {shown(headers)}")
    try:
        pairs: Iterable[tuple[object, object]] = dict(headers).items()
        checked = {check_header_name(name): _header_value(name, value) for name, value in pairs}
    except ValueError as error:
        raise InvalidEvent(str(error)) from error
    except Exception as error:  # a mapping is a class, whose code may raise anything
        raise InvalidEvent(f"headers cannot be read: {describe(error)}") from error
    return checked or NO_HEADERS


def _header_value(name: object, value: object) -> str:
    if isinstance(value, str) and not str.__len__(value):
        return ""
    return check_text(value, f"header {shown(name)}", MAX_HEADER_VALUE_BYTES)
