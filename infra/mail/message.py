"""Mail messages, and their form in RFC 5322."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import parseaddr
from uuid import uuid4

from infra.mail.errors import MailRejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A plain text mail to one recipient."""

    to: str
    """An address, without a display name."""

    subject: str
    text: str
    id: str = field(default_factory=lambda: uuid4().hex)
    """Identifies the mail: the same for each attempt to send it, so that duplicates can be recognized."""


def compose(message: Mail, sender: str, date: datetime) -> EmailMessage:
    """Return `message` in the form of RFC 5322.

    Raises:
        MailRejected: an address is invalid, or a header has a line break.
    """
    try:
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender_address(sender)
        mail["To"] = _recipient_address(message.to)
        mail["Subject"] = message.subject
        mail["Date"] = date
        mail["Message-ID"] = f"<{safe_id(message.id)}@{sender_address(sender).domain}>"
        mail["Auto-Submitted"] = "auto-generated"
        _check_decoded(mail)
        mail.set_content(message.text)
    except (ValueError, MessageError, IndexError) as error:
        raise MailRejected(f"mail {message.id}: {error}") from error
    return mail


def sender_address(sender: str) -> Address:
    """Return `name@domain` or `Name <name@domain>` as an address; raise ValueError for anything else."""
    name, spec = parseaddr(sender)
    try:
        address = Address(display_name=name, addr_spec=spec)
    except (ValueError, MessageError, IndexError):
        address = Address()
    if not address.domain or not address.domain.isascii() or not sender.isprintable():
        raise ValueError(f"invalid sender {sender!r}; use name@domain or Name <name@domain>")
    return address


def _check_decoded(mail: EmailMessage) -> None:
    # A value such as "=?utf-8?q?a=0d=0ab?=" is decoded, and older patch releases of Python write it decoded.
    for name, value in mail.items():
        if not {"\r", "\n"}.isdisjoint(value):
            raise ValueError(f"the header {name} has an encoded line break")


def _recipient_address(text: str) -> Address:
    address = Address(addr_spec=text)
    if not address.domain.isascii():
        raise ValueError("the domain of the recipient is not ASCII; write it in its form xn--...")
    return address


def safe_id(text: str) -> str:
    """Return `text` with all characters replaced that a file name or a Message-ID cannot hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:100] or "mail"
