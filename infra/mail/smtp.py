"""A mailer that sends by SMTP, with the standard library in a thread.

When the sending task is cancelled, its thread ends before the task does.
"""

import asyncio
import base64
import contextlib
import smtplib
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import AddressHeader
from email.message import EmailMessage
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from infra.clock import Clock, SystemClock
from infra.mail.errors import MailError, MailRejected, MailUnavailable
from infra.mail.message import Mail, compose, sender_address

EXPECTED: Final = (
    "use smtp://user:password@host:587, smtp+starttls://... to require encryption, or smtps://...; user and password "
    "are optional, with special characters percent-encoded"
)
_INVALID: Final = f"not the URL of an SMTP server; {EXPECTED}"
_LOGGED_IN: Final = 235
_PERMANENT: Final = range(500, 600)

Security = Literal["opportunistic", "starttls", "tls"]
_SCHEMES: Final[dict[str, tuple[Security, int]]] = {
    "smtp": ("opportunistic", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpServer:
    """The address, encryption and credentials of an SMTP server; `parse` reads them from a URL."""

    host: str
    port: int
    security: Security
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> "SmtpServer":
        """Return the server that `url` names; raise ValueError, in one line without the password, if it names none."""
        try:
            parts = urlsplit(url)
            security, default_port = _SCHEMES[parts.scheme]
            port, host = parts.port or default_port, parts.hostname
        except (ValueError, KeyError):
            raise ValueError(_INVALID) from None
        if not host or parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ValueError(_INVALID)
        if (parts.username is None) != (parts.password is None):
            raise ValueError(f"the URL has a user without a password, or a password without a user; {EXPECTED}")
        user = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        if "\0" in f"{user}{password}":
            raise ValueError(f"the URL has a NUL character in user or password; {EXPECTED}")
        return cls(host=host, port=port, security=security, user=user, password=password)

    @property
    def name(self) -> str:
        """The server's address for error messages."""
        return f"{self.host}:{self.port}"


class SmtpMailer:
    """A mailer that sends each mail to one SMTP server, over a connection of its own.

    `smtp://` encrypts if the server offers it, and refuses to log in if it does not; certificates are always checked.
    """

    def __init__(
        self,
        url: str,
        sender: str,
        *,
        timeout: float = 10.0,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Store the server, the sender, and the seconds that one network operation may take; connect at the first mail.

        Raises:
            ValueError: the URL or the sender is invalid.
        """
        sender_address(sender)
        self._server = SmtpServer.parse(url)
        self._sender = sender
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._tls = tls or ssl.create_default_context()

    async def send(self, message: Mail) -> None:
        mail = compose(message, self._sender, datetime.fromtimestamp(self._clock.time(), UTC))
        session = _Session(self._server, self._timeout, self._tls)
        sending = asyncio.ensure_future(asyncio.to_thread(session.send, mail))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, but its connection can be broken. This attempt must end before the next one.
            session.abort()
            with contextlib.suppress(MailError):
                await sending
            raise


class _Session:
    """One connection, for one mail."""

    def __init__(self, server: SmtpServer, timeout: float, tls: ssl.SSLContext) -> None:
        self._server = server
        self._timeout = timeout
        self._tls = tls
        self._smtp: smtplib.SMTP | None = None
        self._aborted = False

    def send(self, mail: EmailMessage) -> None:
        try:
            try:
                self._connect().sendmail(_address(mail["From"]), _address(mail["To"]), mail.as_bytes())
            finally:
                self._leave()
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise self._failure(code, text) from error
        except smtplib.SMTPDataError as error:
            raise self._failure(error.smtp_code, error.smtp_error) from error
        except (smtplib.SMTPException, OSError) as error:
            # Not permanent: a wrong password or sender is a setting that can be corrected.
            raise MailUnavailable(f"{self._server.name}: {_text(error)}") from error

    def _leave(self) -> None:
        # The outcome is known by now; an error of QUIT does not change it.
        if self._smtp is not None:
            if not self._aborted:
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    self._smtp.quit()
            self._smtp.close()

    def abort(self) -> None:
        """Break the connection, from another thread."""
        self._aborted = True
        if self._smtp is not None and self._smtp.sock is not None:
            with contextlib.suppress(OSError):
                self._smtp.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> smtplib.SMTP:
        server = self._server
        smtp = self._smtp = self._open()
        if self._aborted:
            raise OSError("aborted")
        smtp.ehlo_or_helo_if_needed()
        if server.security == "starttls" or (server.security == "opportunistic" and smtp.has_extn("starttls")):
            smtp.starttls(context=self._tls)
        elif server.user is not None and server.security != "tls":
            raise OSError(
                "no encryption is offered, and the password is not sent in the clear; set smtps:// in mail.smtp_url"
            )
        if server.user is not None and server.password is not None:
            _log_in(smtp, server.user, server.password)
        return smtp

    def _open(self) -> smtplib.SMTP:
        host, port, name = self._server.host, self._server.port, socket.gethostname()
        if self._server.security == "tls":
            return smtplib.SMTP_SSL(host, port, name, timeout=self._timeout, context=self._tls)
        return smtplib.SMTP(host, port, name, timeout=self._timeout)

    def _failure(self, code: int, text: bytes | str) -> MailError:
        answer = text.decode(errors="replace") if isinstance(text, bytes) else text
        reason = f"{self._server.name} answered {code} {answer}"
        return MailRejected(reason) if code in _PERMANENT else MailUnavailable(reason)


def _log_in(smtp: smtplib.SMTP, user: str, password: str) -> None:
    if user.isascii() and password.isascii():
        smtp.login(user, password)
        return
    # The standard library supports ASCII alone; RFC 4616 requires UTF-8.
    plain = base64.b64encode(f"\0{user}\0{password}".encode()).decode("ascii")
    smtp.ehlo_or_helo_if_needed()  # STARTTLS resets the session, so EHLO is due again
    code, answer = smtp.docmd("AUTH", f"PLAIN {plain}")
    if code != _LOGGED_IN:
        raise smtplib.SMTPAuthenticationError(code, answer)


def _address(header: AddressHeader) -> str:
    return header.addresses[0].addr_spec


def _text(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        answer = error.smtp_error
        return f"{error.smtp_code} {answer.decode(errors='replace') if isinstance(answer, bytes) else answer}"
    return str(error) or type(error).__name__
