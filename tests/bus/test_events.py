"""Encoding and decoding of events and frames."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import InvalidEvent, UndecodablePayload, UnknownEvent
from bus.codec import FRAME_VERSION, Frame, decode_frame, encode_frame
from bus.events import EventType, Upcaster
from tests.bus.events import SOME_ID


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rich:
    id: UUID = SOME_ID
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    on: date = date(2026, 1, 1)
    span: timedelta = timedelta(seconds=90)
    price: Decimal = Decimal("1.10")
    colour: Colour = Colour.RED
    inner: Inner = Inner(n=1)
    many: tuple[Inner, ...] = (Inner(n=2),)
    named: dict[str, int] = field(default_factory=lambda: {"a": 1})
    maybe: str | None = None
    raw: bytes = b"\x00\xff"


def test_common_field_types_round_trip() -> None:
    event_type = EventType(Rich)
    assert event_type.decode(event_type.encode(Rich()), 1) == Rich()


@given(st.text(max_size=50), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=50))
def test_any_value_round_trips(text: str, number: int, raw: bytes) -> None:
    @dataclass(frozen=True)
    class Anything:
        text: str
        number: int
        raw: bytes

    event_type = EventType(Anything)
    event = Anything(text, number, raw)
    try:
        assert event_type.decode(event_type.encode(event), 1) == event
    except InvalidEvent:
        assert not text.isprintable()  # a lone surrogate is no text that any wire could carry


def test_unknown_fields_are_ignored_and_missing_fields_take_their_defaults() -> None:
    @dataclass(frozen=True)
    class Wide:
        a: int
        later: str = "default"

    payload = msgspec.msgpack.encode({"a": 1, "unheard of": [1, 2]})
    assert EventType(Wide).decode(payload, 1) == Wide(1, "default")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"a": "x"}), b"\x81\xa1a"])
def test_payload_that_does_not_match_the_event_class_is_undecodable(payload: bytes) -> None:
    @dataclass(frozen=True)
    class Narrow:
        a: int

    with pytest.raises(UndecodablePayload, match="Narrow"):
        EventType(Narrow).decode(payload, 1)


def test_older_version_passes_all_later_upcasters_in_order() -> None:
    def split_name(fields: dict[str, Any]) -> dict[str, Any]:
        first, _, last = fields.pop("name").partition(" ")
        return fields | {"first": first, "last": last}

    def add_age(fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"age": 0}

    @dataclass(frozen=True)
    class Person:
        event_version: ClassVar[int] = 3
        event_upcasters: ClassVar[Mapping[int, Upcaster]] = {1: split_name, 2: add_age}
        first: str
        last: str
        age: int

    event_type = EventType(Person)
    assert event_type.decode(msgspec.msgpack.encode({"name": "Ada Lovelace"}), 1) == Person("Ada", "Lovelace", 0)
    assert event_type.decode(msgspec.msgpack.encode({"first": "A", "last": "L"}), 2) == Person("A", "L", 0)
    with pytest.raises(UndecodablePayload):
        event_type.decode(msgspec.msgpack.encode({"unexpected": 1}), 1)


def test_frozen_msgspec_struct_can_be_an_event() -> None:
    class Fast(msgspec.Struct, frozen=True):
        n: int

    event_type = EventType(Fast)
    assert event_type.decode(event_type.encode(Fast(3)), 1) == Fast(3)

    class Loose(msgspec.Struct):
        n: int

    with pytest.raises(InvalidEvent, match="frozen=True"):
        EventType(Loose)


def test_a_subclass_does_not_inherit_its_parents_wire_name() -> None:
    parent: type = dataclass(frozen=True)(type("Parent", (), {"event_name": "parent"}))
    child: type = dataclass(frozen=True)(type("Child", (parent,), {}))
    assert (EventType(parent).name, EventType(child).name) == ("parent", "Child")


FRAME = Frame("id-1", "UserCreated", 2, "key", 1_700_000_000.5, {"a": "b"}, b"\x80")


def test_frame_is_a_msgpack_array_readable_without_event_classes() -> None:
    assert msgpack.unpackb(encode_frame(FRAME)) == [
        FRAME_VERSION,
        "id-1",
        "UserCreated",
        2,
        "key",
        1_700_000_000.5,
        {"a": "b"},
        b"\x80",
    ]
    assert decode_frame(encode_frame(FRAME)) == FRAME


def test_frame_of_a_newer_version_raises_unknown_event() -> None:
    body = msgpack.packb([FRAME_VERSION + 1, "whatever", "comes", "then"])
    with pytest.raises(UnknownEvent, match="newer than this code"):
        decode_frame(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"garbage",
        msgpack.packb([]),
        msgpack.packb(5),
        msgpack.packb({"a": 1}),
        msgpack.packb([FRAME_VERSION]),
        msgpack.packb([FRAME_VERSION, 1, 2, 3, 4, 5, 6, 7]),
        msgpack.packb(["one", "id", "event"]),
        msgpack.packb([0, "id", "event"]),
        encode_frame(FRAME)[:-3],
        encode_frame(FRAME) + b"x",
    ],
)
def test_bytes_that_are_no_frame_are_undecodable(body: bytes) -> None:
    with pytest.raises(UndecodablePayload, match="not a message of this bus"):
        decode_frame(body)


@pytest.mark.parametrize("version", [0, -1, -(2**63)])
def test_event_version_below_one_is_undecodable(version: int) -> None:
    @dataclass(frozen=True)
    class Later:
        event_version: ClassVar[int] = 3
        event_upcasters: ClassVar[Mapping[int, Upcaster]] = {1: dict, 2: dict}
        n: int

    with pytest.raises(UndecodablePayload, match="the version is below 1"):
        EventType(Later).decode(b"\x81\xa1n\x01", version)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_decoding_errors(body: bytes) -> None:
    with contextlib.suppress(UndecodablePayload, UnknownEvent):
        decode_frame(body)
