"""One publish on its way out: what it needs is made when it is first needed, and once."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec
import uuid_utils

from bus.codec import CAUSATION, CORRELATION, Frame, pack
from bus.delivery import NO_HEADERS, Cause, Delivery
from bus.errors import InvalidEvent, PublishRejected
from bus.registry import Routes
from infra.mq import Message

MAX_ID = 200
"""The longest message id, in characters."""


def new_id() -> str:
    """Return a fresh message id: a UUID of version 7, so that ids sort by time."""
    return str(uuid_utils.uuid7())


class Root(Protocol):
    """Gathers what a tree of sync listeners publishes."""

    def add(self, outgoing: "Outgoing") -> None:
        """Take a place in the order of publishes."""
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

    def message(self, max_payload: int, *, repeatable: bool) -> Message:
        """Make, and keep as `made`, what the queue takes; a `repeatable` one that is sent twice is accepted once.

        Raises:
            InvalidEvent: the event is not what its class says, or cannot be encoded.
            PublishRejected: its payload is larger than `max_payload` bytes.
        """
        event_type, id_, published_at, cause = self.routes.event_type, self.id, self.published_at, self.cause
        name = event_type.name
        payload = event_type.encode(self.event)
        if len(payload) > max_payload:
            raise PublishRejected(
                f"{name} has a payload of {len(payload)} bytes; at most {max_payload} are allowed "
                "(bus.max_payload). Publish a reference to the data instead"
            )
        key = event_type.ordering_key(self.event) if event_type.ordered else None
        headers = {CORRELATION: id_}
        if cause is not None:
            headers = {CORRELATION: self.correlation_id}
            if (causation := cause.id) is not None:
                headers[CAUSATION] = causation
        if self.headers:
            headers |= self.headers
        self.made = Message(
            id=id_,
            event=name,
            body=pack(Frame(id_, name, event_type.version, key, published_at, headers, payload)),
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
            ordering_key=self.routes.event_type.ordering_key(self.event),
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


def valid_id(id_: object) -> str:
    """Return `id_` if it can be a message's id.

    Raises:
        InvalidEvent: it cannot.
    """
    if not isinstance(id_, str) or not id_ or len(id_) > MAX_ID or not id_.isprintable():
        raise InvalidEvent(f"a message id is 1 to {MAX_ID} printable characters, not {id_!r}")
    return id_


def valid_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return `headers` if they can go with a message.

    Raises:
        InvalidEvent: they cannot.
    """
    pairs: Iterable[tuple[object, object]] = headers.items()
    for name, value in pairs:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise InvalidEvent(f"headers map str to str, not {name!r} to {value!r}")
        if name.startswith("beneath-"):
            raise InvalidEvent(f"header {name!r}: names that begin with 'beneath-' belong to the bus")
    return headers
