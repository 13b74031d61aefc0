"""Event classes: their names, versions, ordering keys and encoding."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from bus.errors import InvalidEvent, UndecodablePayload
from bus.event_fields import refuse_lossy_fields
from infra.failures import describe
from infra.mq.limits import check_count, check_delay, check_key, check_name, check_names, shown

MAX_VERSION = 2**31 - 1

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts the fields of an event from one version to the next."""


class EventType:
    """An event class, inspected once: its names, version, ordering key, encoder and decoder."""

    __slots__ = (
        "_decoder",
        "_encode",
        "_ordering_key",
        "aliases",
        "cls",
        "lifetime",
        "name",
        "ordered",
        "ordering_scope",
        "upcasters",
        "version",
    )

    def __init__(self, cls: type) -> None:
        where = f"{cls.__module__}.{cls.__qualname__}"
        _require_frozen(cls, where)
        self.cls = cls
        try:
            self.name, self.aliases = _own_names(cls)
            self.version: int = check_count(
                getattr(cls, "event_version", 1), "event_version", least=1, most=MAX_VERSION
            )
            self.upcasters: Mapping[int, Upcaster] = _upcasters(cls, self.version)
            self._ordering_key: Callable[[Any], object] | None = _ordering_key(cls)
            self.ordering_scope = _ordering_scope(cls)
            """What the ordering key identifies, such as "account"; None if the class does not say."""

            self.lifetime = lifetime_of(getattr(cls, "event_lifetime", None), "event_lifetime")
            """Seconds after its publish, or its due time, at which an event expires; None if it never does."""
        except ValueError as error:
            raise InvalidEvent(f"{where}: {error}") from error
        self.ordered = self._ordering_key is not None
        """Whether the class defines `ordering_key(self) -> str`."""

        try:
            self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cls)
            refuse_lossy_fields(cls, where)
        except (TypeError, NameError) as error:
            raise InvalidEvent(f"{where}: {error}. Every field needs a type that msgspec can validate") from error
        self._encode = msgspec.msgpack.Encoder().encode

    def ordering_key(self, event: object) -> str | None:
        """Return the event's ordering key, None for an unordered class.

        Raises:
            InvalidEvent: `ordering_key()` returned an invalid key, or raised.
        """
        if self._ordering_key is None:
            return None
        try:
            return check_key(self._ordering_key(event), f"what {self.name}.ordering_key() returns")
        except ValueError as error:
            raise InvalidEvent(str(error)) from error
        except Exception as error:
            raise InvalidEvent(f"{self.name}.ordering_key() raised {type(error).__name__}") from error

    def encode(self, event: object) -> bytes:
        """Return the payload, which was decoded once, so that an invalid field fails in the publisher, not in a worker.

        Raises:
            InvalidEvent: the event does not match its class, or cannot be encoded.
        """
        try:
            payload = self._encode(event)
            self._decoder.decode(payload)
        except Exception as error:  # a class's own code runs too, such as its `__post_init__`
            raise InvalidEvent(f"{self.name} cannot be published: {describe(error)}") from error
        return payload

    def decode(self, payload: bytes, version: int) -> Any:  # noqa: ANN401 - an instance of `cls`, which only exists at run time
        """Return the event of a payload that version `version` of the class was encoded to.

        Raises:
            UndecodablePayload: the payload cannot be decoded as this event.
        """
        try:
            if version == self.version:
                return self._decoder.decode(payload)
            return msgspec.convert(self._upcast(msgspec.msgpack.decode(payload), version), self.cls)
        except (msgspec.DecodeError, TypeError, ValueError, KeyError) as error:
            raise UndecodablePayload(f"{self.name} version {version}: {error}") from error

    def _upcast(self, fields: dict[str, Any], version: int) -> dict[str, Any]:
        if version < 1:
            raise ValueError("the version is below 1")
        for old in range(version, self.version):
            fields = self.upcasters[old](fields)
        return fields


def lifetime_of(value: object, what: str) -> float | None:
    """Return a lifetime in seconds, None for None.

    Raises:
        ValueError: it is no number of seconds or timedelta, not above 0, or too long.
    """
    return None if value is None else check_delay(value, what, above=True)


def _require_frozen(cls: type, where: str) -> None:
    if issubclass(cls, msgspec.Struct):
        if not cls.__struct_config__.frozen:
            raise InvalidEvent(f"{where} can be changed after publishing: declare it with frozen=True")
        return
    if not dataclasses.is_dataclass(cls):
        raise InvalidEvent(f"{where} is not an event: make it a frozen dataclass (or a frozen msgspec.Struct)")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # set by @dataclass, unknown to typeshed
        raise InvalidEvent(f"{where} can be changed after publishing: declare it @dataclass(frozen=True)")


def _own_names(cls: type) -> tuple[str, tuple[str, ...]]:
    # Inherited names do not count: they would give two classes one name.
    name = check_name(cls.__dict__.get("event_name", cls.__name__), "event_name")
    aliases = check_names(cls.__dict__.get("event_aliases", ()), "event_aliases", "a name in event_aliases")
    if name in aliases:
        raise ValueError(f"event_aliases contains the event's present name {name!r}; list only its former names")
    return name, aliases


def _upcasters(cls: type, version: int) -> Mapping[int, Upcaster]:
    upcasters: object = getattr(cls, "event_upcasters", {})
    if not isinstance(upcasters, Mapping) or not all(callable(each) for each in upcasters.values()):
        raise ValueError(f"event_upcasters must map versions to functions, not {shown(upcasters)}")
    for old in upcasters:
        check_count(old, "a version in event_upcasters", least=1, most=max(version - 1, 1))
    gap = next(old for old in itertools.count(1) if old not in upcasters)
    if gap < version:
        raise ValueError(
            f"event_upcasters has no upcaster for version {gap}, whose events may still wait: add one, "
            f"or `{gap}: dict` if its fields are those of version {gap + 1}"
        )
    return dict(upcasters)


def _ordering_key(cls: type) -> Callable[[Any], object] | None:
    method: Callable[[Any], object] | None = getattr(cls, "ordering_key", None)
    if method is None:
        return None
    if not inspect.isroutine(method) or inspect.iscoroutinefunction(method):
        raise ValueError(f"ordering_key must be a method, `def ordering_key(self) -> str`, not {shown(method)}")
    return method


def _ordering_scope(cls: type) -> str | None:
    scope: object = getattr(cls, "ordering_scope", None)
    if scope is None:
        return None
    if _ordering_key(cls) is None:
        raise ValueError("ordering_scope says what the ordering key identifies: define `def ordering_key(self) -> str`")
    return check_name(scope, "ordering_scope")
