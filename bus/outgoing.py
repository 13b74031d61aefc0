"""One publish on its way out: what it needs is made when it is first needed, and once."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Protocol

import msgspec
import uuid_utils

from bus.codec import CAUSATION, CORRELATION, Frame, encode_frame
from bus.delivery import NO_HEADERS, Cause, Delivery
from bus.errors import InvalidEvent, PublishRejected
from bus.listener_table import Routes
from infra.failures import describe
from infra.mq import Message
from infra.mq.limits import check_delay, check_due_at, check_id, check_text, shown

MAX_HEADER_NAME_BYTES = 200
MAX_HEADER_VALUE_BYTES = 2**31 - 1
"""Headers count as part of their message, which has a limit of its own."""


def new_id() -> str:
    """Return a fresh message id: a UUID of version 7, so that ids sort by time."""
    return str(uuid_utils.uuid7())


class Root(Protocol):
    """Gathers what a tree of sync listeners publishes."""

    def add(self, outgoing: "Outgoing") -> None:
        """Take a place in the order of publishes."""
        ...

    def savepoint(self) -> int:
        """Return a mark of what was gathered so far."""
        ...

    def rollback_to(self, mark: int) -> None:
        """Forget what was gathered since."""
        ...

    @property
    def open(self) -> bool:
        """Whether the running task is the one that the tree belongs to, and the tree has not ended."""
        ...


class Outgoing(msgspec.Struct):
    """A publish between the call and the queue. It is the cause of what its sync listeners publish."""

    event: object
    routes: Routes
    cause: Cause | None
    published_at: float
    headers: Mapping[str, str] = NO_HEADERS
    due_at: float | None = None
    explicit_id: str | None = None
    one_of_many: bool = False
    """Whether it came in a batch: then nobody is told its id, to repeat it with."""

    depth: int = 0
    """How many sync listeners it stands inside of."""

    root: "Root | None" = None
    """Where there is no transaction: what the outermost publish gathers until its sync phase ends."""

    made: Message | None = None
    """What the queue takes, once `message()` was called."""

    _id: str | None = None

    def stand_inside(self, cause: "Outgoing") -> None:
        """Take note that a sync listener on `cause` publishes this."""
        self.depth, self.root = cause.depth + 1, cause.root

    @property
    def id(self) -> str:
        """The message's id."""
        if self._id is None:
            self._id = self.explicit_id or new_id()
        return self._id

    @property
    def correlation_id(self) -> str:
        """The cause's, or else the message's own id."""
        cause = self.cause
        return (cause.correlation_id if cause is not None else None) or self.id

    @property
    def name(self) -> str:
        """The event's wire name."""
        return self.routes.event_type.name

    def message(self, max_body: int, *, repeatable: bool) -> Message:
        """Make, and keep as `made`, what the queue takes; a `repeatable` one that is sent twice is accepted once.

        Raises:
            InvalidEvent: the event is not what its class says, or cannot be encoded.
            PublishRejected: with its headers and all it is larger than `max_body` bytes.
        """
        event_type, id_, published_at, cause = self.routes.event_type, self.id, self.published_at, self.cause
        name = event_type.name
        payload = event_type.encode(self.event)
        key = event_type.ordering_key(self.event) if event_type.ordered else None
        headers = {CORRELATION: id_}
        if cause is not None:
            headers = {CORRELATION: self.correlation_id}
            if (causation := cause.id) is not None:
                headers[CAUSATION] = causation
        if self.headers:
            headers |= self.headers
        body = encode_frame(Frame(id_, name, event_type.version, key, published_at, headers, payload))
        if len(body) > max_body:
            raise PublishRejected(
                f"{name} has {len(body)} bytes, headers included; at most {max_body} are allowed "
                "(bus.max_payload, and what the queue takes). Publish a reference to the data instead"
            )
        self.made = Message(
            id=id_,
            event=name,
            body=body,
            published_at=published_at,
            ordering_key=key,
            due_at=self.due_at,
            dedupe=repeatable or self.explicit_id is not None,
            fresh=self.explicit_id is None,
        )
        return self.made

    def delivery(self, listener: str) -> Delivery:
        """Return what a handler in this process gets to know."""
        return Delivery(
            id=self.id,
            event=self.name,
            listener=listener,
            published_at=self.published_at,
            correlation_id=self.correlation_id,
            causation_id=self.cause.id if self.cause else None,
            ordering_key=self.made.ordering_key if self.made else self.routes.event_type.ordering_key(self.event),
            headers=self.headers,
        )


def chain(outgoing: Outgoing) -> list[str]:
    """Return the names of the publishes that `outgoing` stands inside of, and its own, outermost first."""
    names: list[str] = []
    cause: Cause | None = outgoing
    while isinstance(cause, Outgoing):
        names.append(cause.name)
        cause = cause.cause if cause.depth else None
    return names[::-1]


def valid_id(id_: object, what: str = "a message id") -> str:
    """Return `id_` if it can be a message's id.

    Raises:
        InvalidEvent: it cannot.
    """
    try:
        return check_id(id_, what)
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def due_in(delay: object, now: float) -> float:
    """Return the due time, in seconds since the epoch, of what is to wait for `delay` from `now` on.

    Raises:
        InvalidEvent: the delay is no number of seconds or timedelta, or out of range.
    """
    try:
        return check_due_at(now + check_delay(delay))
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def due_when(when: object) -> float:
    """Return the due time, in seconds since the epoch, of what is to happen at `when`.

    Raises:
        InvalidEvent: it is no datetime with a time zone, or out of range.
    """
    if not isinstance(when, datetime):
        raise InvalidEvent(f"a time must be a datetime with a time zone, not {shown(when)}")
    try:
        offset, seconds = when.utcoffset(), when.timestamp()
        if offset is not None:
            return check_due_at(0.0 if seconds < 0 else seconds)
    except Exception as error:  # a time zone is a class, whose code may raise anything
        raise InvalidEvent(f"{shown(when)} cannot be scheduled: {describe(error)}") from error
    raise InvalidEvent(f"{shown(when)} has no time zone: use datetime.now(UTC) and the like")


def valid_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return a copy of `headers` if they can go with a message.

    Raises:
        InvalidEvent: they are no mapping of str to str, hold NUL or surrogates, or a name is too long or the bus's own.
    """
    if not isinstance(headers, Mapping):
        raise InvalidEvent(f"headers must map str to str, not {shown(headers)}")
    try:
        pairs: Iterable[tuple[object, object]] = dict(headers).items()
        checked = {
            check_text(name, "a header's name", MAX_HEADER_NAME_BYTES): _header_value(name, value)
            for name, value in pairs
        }
    except ValueError as error:
        raise InvalidEvent(str(error)) from error
    except Exception as error:  # a mapping is a class, whose code may raise anything
        raise InvalidEvent(f"headers cannot be read: {describe(error)}") from error
    for name in checked:
        if name.startswith("beneath-"):
            raise InvalidEvent(f"header {name!r}: names that begin with 'beneath-' belong to the bus")
    return checked or NO_HEADERS


def _header_value(name: object, value: object) -> str:
    if isinstance(value, str) and not str.__len__(value):
        return ""
    return check_text(value, f"header {shown(name)}", MAX_HEADER_VALUE_BYTES)
