"""How an email address is written in every table and event."""

import re

MAX_LENGTH = 254
"""The longest address that SMTP can carry."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

PATTERN = rf"^{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*$"
"""What SMTP carries anywhere: ASCII, no quotes, no comments."""

_VALID = re.compile(PATTERN.removesuffix("$") + r"\Z")


class InvalidEmail(ValueError):
    """The text is not an email address."""


def normalise_email(raw: str) -> str:
    """Return `raw` trimmed and in lower case, so that one mailbox is one text; raise `InvalidEmail`."""
    email = raw.strip().lower()
    if len(email) > MAX_LENGTH or not _VALID.match(email):
        msg = "not an email address: expected name@domain, in ASCII"
        raise InvalidEmail(msg)
    return email
