"""Event classes: what makes one, and what the bus knows about it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from bus.errors import InvalidEvent, UndecodablePayload

MAX_NAME = 200
"""The longest wire name, in characters."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the fields of an event as one version wrote them, returns them as the next version would have."""


class EventType:
    """One event class, inspected once: its names, its version, its ordering key, and how to write and read it."""

    __slots__ = ("_decoder", "_encode", "_ordering_key", "aliases", "cls", "name", "ordered", "upcasters", "version")

    def __init__(self, cls: type) -> None:
        where = f"{cls.__module__}.{cls.__qualname__}"
        _require_frozen(cls, where)
        self.cls = cls
        self.name = _own_name(cls, where)
        self.aliases: tuple[str, ...] = tuple(cls.__dict__.get("event_aliases", ()))
        self.version = _version(cls, where)
        self.upcasters: Mapping[int, Upcaster] = dict(getattr(cls, "event_upcasters", {}))
        self._ordering_key: Callable[[Any], object] | None = getattr(cls, "ordering_key", None)
        self.ordered = self._ordering_key is not None
        """Whether the class defines `ordering_key(self) -> str`."""

        try:
            self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cls)
        except (TypeError, NameError) as error:
            raise InvalidEvent(f"{where}: {error}. Every field needs a type that msgspec can validate") from error
        self._encode = msgspec.msgpack.Encoder().encode

    def ordering_key(self, event: object) -> str | None:
        """Return the event's ordering key, None for an unordered class."""
        if self._ordering_key is None:
            return None
        key = self._ordering_key(event)
        if not isinstance(key, str) or not key:
            raise InvalidEvent(f"{self.name}.ordering_key() must return a non-empty str, not {key!r}")
        return key

    def encode(self, event: object) -> bytes:
        """Return the payload, after reading it back: a wrong field fails its publisher, not a worker."""
        try:
            payload = self._encode(event)
            self._decoder.decode(payload)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
            raise InvalidEvent(f"{self.name} cannot be published: {error}") from error
        return payload

    def decode(self, payload: bytes, version: int) -> Any:  # noqa: ANN401 - an instance of `cls`, which only exists at run time
        """Return the event that `payload`, written by `version`, stands for.

        Raises:
            UndecodablePayload: the bytes do not make this event.
        """
        try:
            if version == self.version:
                return self._decoder.decode(payload)
            return msgspec.convert(self._upcast(msgspec.msgpack.decode(payload), version), self.cls)
        except (msgspec.DecodeError, TypeError, ValueError, KeyError) as error:
            raise UndecodablePayload(f"{self.name} version {version}: {error}") from error

    def _upcast(self, fields: dict[str, Any], version: int) -> dict[str, Any]:
        for old in range(version, self.version):
            if upcaster := self.upcasters.get(old):
                fields = upcaster(fields)
        return fields


def _require_frozen(cls: type, where: str) -> None:
    if issubclass(cls, msgspec.Struct):
        if not cls.__struct_config__.frozen:
            raise InvalidEvent(f"{where} can be changed after publishing: declare it with frozen=True")
        return
    if not dataclasses.is_dataclass(cls):
        raise InvalidEvent(f"{where} is not an event: make it a frozen dataclass (or a frozen msgspec.Struct)")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # set by @dataclass, unknown to typeshed
        raise InvalidEvent(f"{where} can be changed after publishing: declare it @dataclass(frozen=True)")


def _own_name(cls: type, where: str) -> str:
    # Only the class's own: an inherited name would make two classes share one.
    name: object = cls.__dict__.get("event_name", cls.__name__)
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidEvent(f"{where}.event_name must be 1 to {MAX_NAME} printable characters, not {name!r}")
    return name


def _version(cls: type, where: str) -> int:
    version: object = getattr(cls, "event_version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidEvent(f"{where}.event_version must be a whole number from 1 up, not {version!r}")
    return version
