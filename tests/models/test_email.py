"""Tests of the normal form and the validation of email addresses."""

import re

import pytest

from models.email import MAX_LENGTH, PATTERN, InvalidEmail, normalise_email


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("ada@example.com", "ada@example.com"),
        ("  Ada.Lovelace+news@Example.COM\n", "ada.lovelace+news@example.com"),
        ("o'hara@a-b.example", "o'hara@a-b.example"),
        ("root@localhost", "root@localhost"),
    ],
)
def test_equivalent_emails_have_one_normal_form(raw: str, normal: str) -> None:
    assert normalise_email(raw) == normal
    assert normalise_email(normal) == normal


@pytest.mark.parametrize(
    "raw",
    ["", "@", "a@", "@b", "a@@b", "a@b@c", "a b@c", "a@b c", ".a@b", "a.@b", "a..b@c", "a@-b", "a@b-", "a@b..c", "a@b.",
     "a@b\r\nBcc: c@d", '"a"@b', "é@b", "a@é", "a\x00@b", "x" * 250 + "@b.de",
     "x" * 65 + "@b.de", "\u212a@b", "a@\u212a", "\u00a0a@b"],
)  # fmt: skip
def test_invalid_email_address_is_refused(raw: str) -> None:
    with pytest.raises(InvalidEmail, match="name@domain"):
        normalise_email(raw)


def test_email_pattern_does_not_backtrack_on_long_text() -> None:
    assert re.match(PATTERN, "a@" + "b." * ((MAX_LENGTH - 3) // 2) + "c")
    assert not re.match(PATTERN, "a" * 100_000)
