"""Limits of what a queue stores, the same for every driver, and the checks that enforce them.

The bus checks its callers' arguments, so that drivers may rely on these limits. Each check returns the value in the
form in which it is used, or raises ValueError with one line that names the value by `what`.
"""

import math
from collections.abc import Iterable
from datetime import timedelta
from itertools import islice
from typing import Literal

MAX_ID_BYTES = 256
"""The longest message id, in bytes of UTF-8."""

MAX_KEY_BYTES = 1024
"""The longest ordering key, in bytes of UTF-8: below the index limit of every driver."""

MAX_NAME_BYTES = 200
"""The longest name of an event or a listener, aliases included, in bytes of UTF-8."""

MAX_BODY = 256 * 1024 * 1024
"""The largest body of a message, in bytes, of drivers whose store would take more."""

RESENT_IDS = 20_000
"""Number of ids that a queue remembers of messages with `Message.accepted_since`."""

RESENT_FOR = 7 * 24 * 3600.0
"""Time, in seconds, for which a queue remembers them."""

MAX_NAMES = 1000
"""The largest number of aliases of an event or a listener."""

MAX_DUE_AT = 253_402_300_799.0
"""The latest due time, in seconds since the epoch: the last second of the year 9999."""

MAX_DELAY = 100 * 365.25 * 24 * 3600
"""The longest delay, in seconds: 100 years."""

MAX_SHOWN_BYTES = 120
"""The largest part of a refused value that an error message shows, in bytes."""


def storable_text(text: str, max_bytes: int, *, keep: Literal["start", "end"] = "start") -> str:
    r"""Return `text` as every driver can store it: valid UTF-8 without NUL, of at most `max_bytes` bytes.

    Surrogates and NUL become escapes (`\ud800`, `\x00`). What is too long loses its end or, with `keep="end"`, its
    start. The work is bounded by `max_bytes`, not by the length of `text`.
    """
    if max_bytes <= 0:
        return ""
    # A character takes a byte or more, so the first cut drops nothing that the second would keep.
    near = text[:max_bytes] if keep == "start" else text[-max_bytes:]
    encoded = near.encode("utf-8", "backslashreplace").replace(b"\0", rb"\x00")
    cut = encoded[:max_bytes] if keep == "start" else encoded[-max_bytes:]
    return cut.decode("utf-8", "ignore")  # half a character at the cut is dropped


def shown(value: object) -> str:
    """Return a short form of a refused value for an error message; never raises an Exception."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - `repr` is the caller's code and may raise anything
        text = f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"
    short = storable_text(text, MAX_SHOWN_BYTES)
    return short if short == text else f"{short}..."


def check_text(value: object, what: str, max_bytes: int) -> str:
    """Return `value`, as a plain str, if it is text of 1 to `max_bytes` bytes of UTF-8 without NUL and surrogates.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, str):
        text = value if type(value) is str else str.__str__(value)  # drivers take no subclasses, such as enums
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = 0
        if 1 <= size <= max_bytes and "\0" not in text:
            return text
    raise ValueError(
        f"{what} must be a str of 1 to {max_bytes} bytes in UTF-8, without NUL or surrogates, not {shown(value)}"
    )


def check_choice(value: object, what: str, choices: tuple[str, ...]) -> str:
    """Return `value`, as a plain str, if it is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    text = str.__str__(value) if isinstance(value, str) else None
    if text in choices:
        return text
    *others, last = map(repr, choices)
    raise ValueError(f"{what} must be {', '.join(others)} or {last}, not {shown(value)}")


def check_printable(value: object, what: str, max_bytes: int) -> str:
    """Return `value` if it is printable text that `check_text` accepts.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not str.isprintable(value):
        raise ValueError(f"{what} must be a str of 1 to {max_bytes} bytes of printable characters, not {shown(value)}")
    return check_text(value, what, max_bytes)


def check_id(value: object, what: str = "a message id") -> str:
    """Return `value` if it can be a message's id: printable text of at most `MAX_ID_BYTES` bytes.

    Raises:
        ValueError: it cannot.
    """
    return check_printable(value, what, MAX_ID_BYTES)


def check_name(value: object, what: str) -> str:
    """Return `value` if it can be the name of an event or a listener: printable, at most `MAX_NAME_BYTES` bytes.

    Raises:
        ValueError: it cannot.
    """
    return check_printable(value, what, MAX_NAME_BYTES)


def check_items(items: object, what: str, kind: str, of: str, most: int) -> list[object]:
    """Return the items of an iterable, which may be endless; `kind` and `of` say in errors what is expected.

    Raises:
        ValueError: it is a str or bytes, which would be an item for every character, or not iterable, or has more than
            `most` items.
    """
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise ValueError(f"{what} must be a {kind} of {of}, not {shown(items)}")  # noqa: TRY004 - every check here raises the same
    found: list[object] = list(islice(items, most + 1))
    if len(found) > most:
        raise ValueError(f"{what} holds more than {most} {of}")
    return found


def check_names(names: object, what: str, each: str) -> tuple[str, ...]:
    """Return several names as a tuple.

    Raises:
        ValueError: it is a str, which would be a name for every character, or not iterable, or holds an invalid name, a
            name twice, or more than `MAX_NAMES` names.
    """
    checked: list[str] = []
    for name in check_items(names, what, "tuple or list", "names", MAX_NAMES):
        if (plain := check_name(name, each)) in checked:
            raise ValueError(f"{what} holds the name {plain!r} twice")
        checked.append(plain)
    return tuple(checked)


def check_key(value: object, what: str = "an ordering key") -> str:
    """Return `value` if it can be an ordering key: text of 1 to `MAX_KEY_BYTES` bytes without NUL and surrogates.

    Raises:
        ValueError: it cannot.
    """
    return check_text(value, what, MAX_KEY_BYTES)


def check_number(value: object, what: str, *, least: float, most: float, above: bool = False) -> float:
    """Return `value` as a finite float from `least` (with `above`: from more than `least`) to `most`.

    Raises:
        ValueError: it is not a number (a bool is not), not finite, or out of range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if least <= number <= most and math.isfinite(number) and not (above and number == least):
            return number
    bounds = f"more than {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    raise ValueError(f"{what} must be a number {bounds}, not {shown(value)}")


def check_count(value: object, what: str, *, least: int, most: int) -> int:
    """Return `value` if it is a whole number from `least` to `most`.

    Raises:
        ValueError: it is not an int (a bool is not), or out of range.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        count = value if type(value) is int else int.__int__(value)
        if least <= count <= most:
            return count
    raise ValueError(f"{what} must be a whole number from {least} to {most}, not {shown(value)}")


def check_delay(value: object, what: str = "a delay", *, above: bool = False) -> float:
    """Return a delay in seconds, from a number of seconds or a timedelta: from 0 (with `above`: more) to `MAX_DELAY`.

    Raises:
        ValueError: it is neither, or negative, not finite, or longer.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return check_number(seconds, f"{what} (in seconds)", least=0, most=MAX_DELAY, above=above)


def check_due_at(value: object, what: str = "a due time") -> float:
    """Return a due time in seconds since the epoch: 0 to `MAX_DUE_AT`.

    Raises:
        ValueError: it is not a number, not finite, or out of range.
    """
    return check_number(value, f"{what} (in seconds since the epoch)", least=0, most=MAX_DUE_AT)
