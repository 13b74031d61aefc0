"""An email, before it is written as one."""

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
class Message:
    """A plain text email to one person."""

    to: str
    """An address, without a display name."""

    subject: str
    text: str
    id: str = field(default_factory=lambda: uuid4().hex)
    """The same for every attempt to send the same mail, so that a copy can be told from a second mail."""


def compose(message: Message, sender: str, date: datetime) -> EmailMessage:
    """Return `message` as RFC 5322 has it.

    Raises:
        MailRejected: an address is none, or a header would not be one line.
    """
    try:
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender_address(sender)
        mail["To"] = Address(addr_spec=message.to)
        mail["Subject"] = message.subject
        mail["Date"] = date
        mail["Message-ID"] = f"<{safe_id(message.id)}@{sender_address(sender).domain}>"
        mail["Auto-Submitted"] = "auto-generated"
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
    if not address.domain or not sender.isprintable():
        raise ValueError(f"not a sender: {sender!r}; expected name@domain or Name <name@domain>")
    return address


def safe_id(text: str) -> str:
    """Return `text` with only the characters that a file name and a Message-ID can hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:100] or "mail"
