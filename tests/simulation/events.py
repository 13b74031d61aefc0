"""What a simulated application publishes: two versions of its code, which run side by side."""

from typing import Any, ClassVar

import msgspec


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Has a place in its key's order."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Is delayed; alone in its key."""

    key: str
    n: int


class Chime(msgspec.Struct, frozen=True, kw_only=True):
    """Is broadcast."""

    key: str
    n: int


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the old code knows it."""

    event_name: ClassVar[str] = "Note"

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


def _add_author(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"author": "unknown"}


class RevisedNote(msgspec.Struct, frozen=True, kw_only=True):
    """The same event in the new code, whose frames the old code parks."""

    event_name: ClassVar[str] = "Note"
    event_version: ClassVar[int] = 2
    event_upcasters: ClassVar[dict[int, Any]] = {1: _add_author}

    key: str
    n: int
    author: str

    def ordering_key(self) -> str:
        return self.key


class Postscript(msgspec.Struct, frozen=True, kw_only=True):
    """An event that the new code alone knows; it shares the order of notes."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


Event = Step | Alarm | Note | RevisedNote | Postscript

NOTES = (Note, RevisedNote, Postscript)
"""Events of one kind in the journal: no two of them have the same key and place."""


def kind_of(event: Event) -> str:
    """Return what the journal calls an event's kind."""
    return "Note" if isinstance(event, NOTES) else type(event).__name__
