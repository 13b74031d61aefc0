"""Tests of the normal form and the validation of names."""

import pytest

from models.name import InvalidName, normalise_name


@pytest.mark.parametrize(
    "name",
    [
        *("Ada", "A", "Åsa", "王小明", "O'Neill", "Ada\u00a0Lovelace", "Sørensen & Co. (2)", "१२३", "€", "-"),
        *("👩\u200d🚀", "می\u200cخورم", "❤\ufe0f", "क्\u200dष", "שָׁלוֹם", "مُحَمَّد", "Nguyễn", "x" * 200),
    ],
)
def test_names_of_every_script_are_kept(name: str) -> None:
    assert normalise_name(name) == name


def test_equivalent_names_have_one_normal_form() -> None:
    assert normalise_name("A\u030asa") == normalise_name("\u00c5sa") == normalise_name("\u212bsa") == "Åsa"


INVISIBLE = "\u200b\u2060\ufeff\u00ad\u3164\u2800\u115f\uffa0\u180e\U00013441\U00013442\U000e0041"
CONTROLS = "\0\t\n\r\x1b\x7f\x85\x9b\u2028\u2029"
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
UNKNOWN = "\ue000\ufdd0\uffff\u0378\ud800"
SPACES = " \u00a0\u2003\u3000"
JOINERS = "\u200c\u200d"
MARKS = "\u0301\ufe0f\u034f\u20dd"


def with_each(characters: str, form: str) -> list[object]:
    """Return a test parameter for each character, in place of the underscore in `form`."""
    return [pytest.param(form.replace("_", each), id=f"{form} with {each!a}") for each in characters]


@pytest.mark.parametrize(
    "name",
    [
        *with_each(INVISIBLE + CONTROLS + DIRECTIONS + UNKNOWN + SPACES + JOINERS + MARKS, "_"),
        *with_each(INVISIBLE + CONTROLS + DIRECTIONS + UNKNOWN, "A_da"),
        *with_each(SPACES + JOINERS + MARKS, "_Ada"),
        *with_each(SPACES + JOINERS, "Ada_"),
        *with_each(SPACES + JOINERS, "__"),
        pytest.param("", id="nothing"),
        pytest.param("A" + "\u0316" * 9, id="a tower of marks"),
        pytest.param("A" + "\u0316\u200d" * 9 + "da", id="a tower of marks and joiners"),
        pytest.param("A\u200d\u200cda", id="joiners in a row"),
        pytest.param("x" * 201, id="too long"),
        pytest.param("\U0001d160" * 100, id="too long once normalised"),
    ],
)
def test_invisible_or_misleading_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match=r"^expected "):
        normalise_name(name)
