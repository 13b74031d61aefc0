"""The notification service: mails a welcome to new users, and invites."""

from typing import Protocol
from uuid import UUID

from bus import Bus, Delivery, Discard, Retry
from infra.mail import Mail, Mailer, MailRejected
from models.organization import MemberInvited
from models.user import UserCreated

MAIL_RETRY = Retry(max_attempts=8)
MAIL_TIMEOUT = 30.0
"""Seconds after which sending a mail is cancelled and counts as a failure."""


class InviteTokens(Protocol):
    """The service that owns the invites."""

    async def new_invite_token(self, invite_id: UUID) -> str | None:
        """Return a new token for the invite and invalidate the previous one; None if the invite is not open."""
        ...


class NotificationService:
    """Sends one mail for each event; after a crash between sending and settling, a second one."""

    def __init__(self, bus: Bus, mailer: Mailer, invites: InviteTokens) -> None:
        self._mailer = mailer
        self._invites = invites
        bus.add_async_listener(self.send_welcome_email, retry=MAIL_RETRY, timeout=MAIL_TIMEOUT)
        bus.add_async_listener(self.send_invite, retry=MAIL_RETRY, timeout=MAIL_TIMEOUT)

    async def send_welcome_email(self, event: UserCreated, delivery: Delivery) -> None:
        """Send a welcome mail to a new user."""
        text = f"Hello {one_line(event.name)},\n\nwelcome! Your organization and a first project are waiting for you.\n"
        await self._send(Mail(id=delivery.id, to=event.email, subject="Welcome", text=text))

    async def send_invite(self, event: MemberInvited, delivery: Delivery) -> None:
        """Mail an invite with its token, which is generated here because it is stored only as a hash."""
        token = await self._invites.new_invite_token(event.invite_id)
        if token is None:
            raise Discard(f"invite {event.invite_id} is no longer open")
        text = (
            f"Hello,\n\nyou are invited to join {one_line(event.organization_name)}.\n"
            "Sign in and accept with this token, which is only good once:\n\n"
            f"{token}\n"
        )
        subject = f"Join {one_line(event.organization_name)}"
        await self._send(Mail(id=delivery.id, to=event.email, subject=subject, text=text))

    async def _send(self, message: Mail) -> None:
        try:
            await self._mailer.send(message)
        except MailRejected as error:
            # The server would reject it again. Other errors are retried.
            raise Discard(str(error)) from error


def one_line(name: str) -> str:
    """Return a name as one line: events of earlier releases may contain names that are refused today."""
    return " ".join(name.split())
