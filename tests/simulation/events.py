"""The events of the simulated application, in two versions of its code that run side by side."""

from typing import Any, ClassVar

import msgspec


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """An ordered event; `n` is its position within its key."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A delayed, unordered event."""

    key: str
    n: int


class Chime(msgspec.Struct, frozen=True, kw_only=True):
    """A broadcast event."""

    key: str
    n: int


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The first version of an event, as the old code knows it."""

    event_name: ClassVar[str] = "Note"
    ordering_scope: ClassVar[str] = "notes"

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


def _add_author(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"author": "unknown"}


class RevisedNote(msgspec.Struct, frozen=True, kw_only=True):
    """The second version of `Note`, in the new code; the old code parks its frames."""

    event_name: ClassVar[str] = "Note"
    ordering_scope: ClassVar[str] = "notes"
    event_version: ClassVar[int] = 2
    event_upcasters: ClassVar[dict[int, Any]] = {1: _add_author}

    key: str
    n: int
    author: str

    def ordering_key(self) -> str:
        return self.key


class Postscript(msgspec.Struct, frozen=True, kw_only=True):
    """An event that only the new code knows, ordered together with notes."""

    ordering_scope: ClassVar[str] = "notes"

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


Event = Step | Alarm | Note | RevisedNote | Postscript

NOTES = (Note, RevisedNote, Postscript)
"""Events that the journal calls `Note`: no two of them have the same key and position."""


def kind_of(event: Event) -> str:
    """Return the kind under which the journal records an event."""
    return "Note" if isinstance(event, NOTES) else type(event).__name__
