"""Errors as text, also if methods of the errors raise.

User code may raise errors of any class, so this module calls no code of an error or its class but `str(error)`.
"""

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

MAX_ERROR = 2_000
"""The largest number of characters of an error's message; the rest is cut off."""

MAX_TRACEBACK = 16_384
"""The largest number of characters of a traceback; the beginning is cut off, because the end says most."""

MAX_RENDERED = 32
"""The largest number of errors in a traceback, with causes and members of groups: rendering one takes about 0.1 ms."""

MAX_MEMBERS = 15
"""The largest number of members of a group in a traceback."""

MAX_FRAMES = 100
"""The largest number of stack frames of an error in a traceback, the innermost ones."""

MAX_NOTES = 10
"""The largest number of notes of an error in a traceback."""

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def describe(error: BaseException) -> str:
    """Return an error's class and message in one line; never raises."""
    message = " ".join(_text(error, MAX_ERROR).split())
    name = class_name(error)
    return f"{name}: {message}" if message else name


def class_name(error: BaseException) -> str:
    """Return the name of an error's class; never raises."""
    return str.__str__(_field(type, "__name__", type(error)))


def members(group: BaseException) -> tuple[BaseException, ...]:
    """Return the members of an exception group, whatever its class says they are."""
    return tuple(_field(BaseExceptionGroup, "exceptions", group))


def render_traceback(error: BaseException) -> str:
    """Return the end of an error's traceback with its causes; never raises, and takes a bounded time."""
    try:
        return "".join(_Rendering().chain(error))[-MAX_TRACEBACK:]
    except BaseException as failure:  # noqa: BLE001 - such as a source file that cannot be read
        return f"{describe(error)} (its traceback cannot be shown: {class_name(failure)})\n"


class _Rendering:
    """One traceback in the making."""

    def __init__(self) -> None:
        self._left = MAX_RENDERED

    def chain(self, error: BaseException) -> Iterator[str]:
        """Yield the lines of an error, after those of what it was raised from."""
        links: list[tuple[BaseException, str]] = []
        seen: set[int] = set()
        each: BaseException | None = error
        link = ""
        while each is not None and id(each) not in seen and self._left > 0:
            self._left -= 1
            seen.add(id(each))
            links.append((each, link))
            each, link = _origin(each)
        if each is not None and id(each) not in seen:
            yield f"(earlier errors are not shown)\n{link}"
        for shown, follows in reversed(links):
            yield from self._error(shown)
            yield follows

    def _error(self, error: BaseException) -> Iterator[str]:
        frames: TracebackType | None = _field(BaseException, "__traceback__", error)
        if frames is not None:
            yield "Traceback (most recent call last):\n"
            yield from traceback.StackSummary.extract(traceback.walk_tb(frames), limit=-MAX_FRAMES).format()
        text = _text(error, MAX_TRACEBACK)
        yield f"{_full_name(error)}: {text}\n" if text else f"{_full_name(error)}\n"
        for note in _notes(error):
            yield f"{note}\n"
        if issubclass(type(error), BaseExceptionGroup):
            yield from self._members(members(error))

    def _members(self, errors: tuple[BaseException, ...]) -> Iterator[str]:
        for number, each in enumerate(errors[:MAX_MEMBERS], start=1):
            if self._left <= 0:
                break
            yield f"  +---------------- {number} ----------------\n"
            for block in self.chain(each):
                yield "".join(f"  | {line}" for line in block.splitlines(keepends=True))
        if len(errors) > MAX_MEMBERS:
            yield f"  +---------------- and {len(errors) - MAX_MEMBERS} more\n"


def _field(cls: type, name: str, of: object) -> Any:  # noqa: ANN401 - whatever the field holds
    """Return a field of the interpreter's own, where a subclass or metaclass may have put a property in its place."""
    return vars(cls)[name].__get__(of)


def _origin(error: BaseException) -> tuple[BaseException | None, str]:
    """Return what an error was raised from, and the words for that."""
    cause: BaseException | None = _field(BaseException, "__cause__", error)
    if cause is not None:
        return cause, _CAUSE
    if _field(BaseException, "__suppress_context__", error):
        return None, ""
    context: BaseException | None = _field(BaseException, "__context__", error)
    return context, _CONTEXT


def _text(error: BaseException, length: int) -> str:
    """Return the beginning of what `str()` says of an error; never raises."""
    try:
        # A subclass of str may do anything in its methods; a slice of it is a plain str.
        return str.__getitem__(str(error), slice(0, length))
    except BaseException as failure:  # noqa: BLE001 - it is the error's own code, and worth no more than a remark
        return f"(its text cannot be shown: str() raised {class_name(failure)})"


def _full_name(error: BaseException) -> str:
    module = type(error).__dict__.get("__module__")
    name = str.__str__(_field(type, "__qualname__", type(error)))
    return name if type(module) is not str or module in {"builtins", "__main__"} else f"{module}.{name}"


def _notes(error: BaseException) -> list[str]:
    notes = _field(BaseException, "__dict__", error).get("__notes__")
    if type(notes) is not list:
        return []
    return [str.__getitem__(each, slice(0, MAX_ERROR)) for each in notes[:MAX_NOTES] if isinstance(each, str)]
