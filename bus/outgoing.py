"""One publish on its way out: what it needs is made when it is first needed, and once."""

from collections.abc import Iterable, Mapping

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


class Outgoing:
    """A publish between the call and the queue. It is the cause of what its sync listeners publish."""

    __slots__ = (
        "_body",
        "_cause",
        "_correlation_id",
        "_headers",
        "_id",
        "due_at",
        "event",
        "explicit_id",
        "published_at",
        "routes",
    )

    def __init__(
        self,
        event: object,
        routes: Routes,
        *,
        cause: Cause | None,
        published_at: float,
        id: str | None = None,  # noqa: A002 - the name that publish() gives it
        headers: Mapping[str, str] | None = None,
        due_at: float | None = None,
    ) -> None:
        self.event = event
        self.routes = routes
        self.published_at = published_at
        self.due_at = due_at
        self._cause = cause
        self._id = _valid_id(id) if id is not None else None
        self._headers = _valid_headers(headers) if headers else NO_HEADERS
        self._correlation_id: str | None = None
        self._body: bytes | None = None
        self.explicit_id = id is not None

    @property
    def id(self) -> str:
        """The message's id."""
        if self._id is None:
            self._id = new_id()
        return self._id

    @property
    def correlation_id(self) -> str:
        """The cause's, or else the message's own id."""
        if self._correlation_id is None:
            self._correlation_id = (self._cause.correlation_id if self._cause else None) or self.id
        return self._correlation_id

    @property
    def name(self) -> str:
        """The event's wire name."""
        return self.routes.event_type.name

    def encode(self, max_payload: int) -> bytes:
        """Return the frame's bytes.

        Raises:
            InvalidEvent: the event is not what its class says, or cannot be encoded.
            PublishRejected: its payload is larger than `max_payload` bytes.
        """
        if self._body is None:
            event_type = self.routes.event_type
            payload = event_type.encode(self.event)
            if len(payload) > max_payload:
                raise PublishRejected(
                    f"{event_type.name} has a payload of {len(payload)} bytes; at most {max_payload} are allowed "
                    "(bus.max_payload). Publish a reference to the data instead"
                )
            key = event_type.ordering_key(self.event)
            headers = dict(self._headers)
            headers[CORRELATION] = self.correlation_id
            if self._cause is not None and (causation := self._cause.id) is not None:
                headers[CAUSATION] = causation
            frame = Frame(self.id, event_type.name, event_type.version, key, self.published_at, headers, payload)
            self._body = pack(frame)
        return self._body

    def message(self, max_payload: int) -> Message:
        """Return what the queue takes."""
        return Message(
            id=self.id,
            event=self.name,
            body=self.encode(max_payload),
            published_at=self.published_at,
            ordering_key=self.routes.event_type.ordering_key(self.event),
            due_at=self.due_at,
            dedupe=self.explicit_id,
        )

    def delivery(self, listener: str) -> Delivery:
        """Return what a handler in this process gets to know."""
        return Delivery(
            id=self.id,
            event=self.name,
            listener=listener,
            published_at=self.published_at,
            correlation_id=self.correlation_id,
            causation_id=self._cause.id if self._cause else None,
            ordering_key=self.routes.event_type.ordering_key(self.event),
            headers=self._headers,
        )


def _valid_id(id_: object) -> str:
    if not isinstance(id_, str) or not id_ or len(id_) > MAX_ID or not id_.isprintable():
        raise InvalidEvent(f"a message id is 1 to {MAX_ID} printable characters, not {id_!r}")
    return id_


def _valid_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    pairs: Iterable[tuple[object, object]] = headers.items()
    for name, value in pairs:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise InvalidEvent(f"headers map str to str, not {name!r} to {value!r}")
        if name.startswith("beneath-"):
            raise InvalidEvent(f"header {name!r}: names that begin with 'beneath-' belong to the bus")
    return headers
