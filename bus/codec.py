"""The wire format of messages: one msgpack array, the frame, which can be decoded without the event's class.

    [frame version, id, event, event version, ordering key, published at, headers, payload]

`published at` is in seconds since the epoch, `headers` maps str to str, `payload` is msgpack too (see `EventType`).
Headers whose names begin with "beneath-" belong to the bus.
"""

from collections.abc import Mapping

import msgpack
import msgspec

from bus.errors import UndecodablePayload, UnknownEvent
from infra.mq.limits import check_text

FRAME_VERSION = 1
CORRELATION = "beneath-correlation-id"
CAUSATION = "beneath-causation-id"
EXPIRES_AT = "beneath-expires-at"

RESERVED = "beneath-"
"""The beginning of the names of the bus's own headers."""

MAX_HEADER_NAME_BYTES = 200

_packer = msgpack.Packer()
"""Shared by all frames, because a new packer costs as much as packing; keeps no state between frames."""


class Frame(msgspec.Struct, frozen=True):
    """The decoded frame of a message, with its payload as bytes."""

    id: str
    event: str
    event_version: int
    ordering_key: str | None
    published_at: float
    headers: Mapping[str, str]
    payload: bytes


def check_header_name(value: object, what: str = "a header's name") -> str:
    """Return `value` if it can be the name of an application's header.

    Raises:
        ValueError: it is no text of 1 to `MAX_HEADER_NAME_BYTES` bytes, or the name is the bus's own.
    """
    name = check_text(value, what, MAX_HEADER_NAME_BYTES)
    if name.startswith(RESERVED):
        raise ValueError(f"{what} is {name!r}: names that begin with {RESERVED!r} belong to the bus")
    return name


def frame_name(version: int) -> str:
    """Return the name of a frame version in `Settlement.needs` and `Consumer.unpark`."""
    return f"frame version {version}"


def encode_frame(frame: Frame) -> bytes:
    """Return the encoded frame."""
    packed: bytes = _packer.pack(
        (
            FRAME_VERSION,
            frame.id,
            frame.event,
            frame.event_version,
            frame.ordering_key,
            frame.published_at,
            frame.headers,
            frame.payload,
        )
    )
    return packed


def decode_frame(body: bytes) -> Frame:
    """Decode a frame.

    Raises:
        UnknownEvent: the frame has a newer version than this code knows.
        UndecodablePayload: the bytes are not a frame.
    """
    try:
        version, *fields = msgpack.unpackb(body)
        if version == FRAME_VERSION:
            return _frame(*fields)
    except Exception as error:  # msgpack raises errors of many types for invalid bytes
        raise UndecodablePayload(f"not a message of this bus: {type(error).__name__}: {error}") from error
    if isinstance(version, int) and version > FRAME_VERSION:
        raise UnknownEvent(
            f"frame version {version} is newer than this code, which reads {FRAME_VERSION}", needs=frame_name(version)
        )
    raise UndecodablePayload(f"not a message of this bus: it begins with {version!r}")


def _frame(
    id_: object, event: object, version: object, key: object, published_at: object, headers: object, payload: object
) -> Frame:
    if (
        isinstance(id_, str)
        and isinstance(event, str)
        and isinstance(version, int)
        and (key is None or isinstance(key, str))
        and isinstance(published_at, float | int)
        and isinstance(headers, dict)
        and isinstance(payload, bytes)
    ):
        return Frame(id_, event, version, key, published_at, headers, payload)
    raise TypeError("a field has the wrong type")
