"""Validation and normal form of names of people and things."""

import unicodedata
from typing import Final

MAX_LENGTH: Final = 200
"""Characters of a name, at most; in UTF-8 at most 800 bytes."""

MAX_MARKS: Final = 8
"""Combining marks in a row, at most, without joiners; more of them overlap the lines above and below."""

_JOINERS: Final = frozenset("\u200c\u200d")
"""Invisible characters that Persian, the scripts of India and emoji need."""

_BLANK: Final = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00013441\U00013442\U0001d159")
"""Letters and symbols without a visible glyph."""

_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of control and format characters, surrogates, private use, unassigned, and line separators."""

_VISIBLE: Final = frozenset("LNPS")


class InvalidName(ValueError):
    """The text is not a valid name."""


def normalise_name(raw: str) -> str:
    """Return `raw` in Unicode's form NFC, in which equal names are equal texts.

    Raises:
        InvalidName: `raw` is longer than 200 characters, has several lines, no visible character or a space at an end,
            or contains a control character, a mark for the direction of text, or a character unknown to this Python.
    """
    if len(raw) > MAX_LENGTH:
        raise InvalidName(f"expected at most {MAX_LENGTH} characters")
    name = unicodedata.normalize("NFC", raw)
    if len(name) > MAX_LENGTH:
        raise InvalidName(f"expected at most {MAX_LENGTH} characters in Unicode's form NFC")
    categories = [unicodedata.category(each) for each in name]
    for each, category in zip(name, categories, strict=True):
        if each in _BLANK or (category in _REFUSED and each not in _JOINERS):
            raise InvalidName(f"expected no U+{ord(each):04X}: it is invisible, a control character or unassigned")
    if not any(category[0] in _VISIBLE for category in categories):
        raise InvalidName("expected a visible character")
    if any(name[at] in _JOINERS or categories[at][0] == "Z" for at in (0, -1)):
        raise InvalidName("expected one line that neither begins nor ends with a space")
    if categories[0][0] == "M":
        raise InvalidName("expected no combining mark at the beginning")
    _require_short_runs(name, categories)
    return name


def _require_short_runs(name: str, categories: list[str]) -> None:
    marks = joiners = 0
    for each, category in zip(name, categories, strict=True):
        # A joiner does not end a run of marks: marks after it still belong to the same letter.
        marks = marks + 1 if category[0] == "M" else marks if each in _JOINERS else 0
        joiners = joiners + 1 if each in _JOINERS else 0
        if marks > MAX_MARKS:
            raise InvalidName(f"expected at most {MAX_MARKS} combining marks in a row")
        if joiners > 1:
            raise InvalidName("expected no two joiners in a row")
