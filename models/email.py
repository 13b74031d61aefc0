"""Validation and normal form of email addresses."""

import re

MAX_LENGTH = 254
"""The longest address that SMTP can carry."""

MAX_LOCAL = 64
"""The longest part before the @ that SMTP can carry."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

PATTERN = rf"^{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*$"
"""Addresses that every SMTP server accepts: ASCII, without quotes and comments."""

_VALID = re.compile(PATTERN.removesuffix("$") + r"\Z")


class InvalidEmail(ValueError):
    """The text is not an email address."""


def normalise_email(raw: str) -> str:
    """Return `raw` trimmed and in lower case, so that one mailbox has one text; raise `InvalidEmail`."""
    email = raw.strip().lower()
    # Some letters outside of ASCII have lower case forms in ASCII: that would be another mailbox.
    is_valid = raw.isascii() and len(email) <= MAX_LENGTH and _VALID.match(email)
    if not is_valid or email.index("@") > MAX_LOCAL:
        msg = "not an email address: expected name@domain, in ASCII"
        raise InvalidEmail(msg)
    return email
