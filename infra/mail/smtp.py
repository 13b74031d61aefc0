"""A mailer that sends by SMTP."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import AddressHeader
from typing import Final, Literal, cast
from urllib.parse import unquote, urlsplit

import aiosmtplib

from infra.clock import Clock, SystemClock
from infra.mail.errors import MailError, MailRejected, MailUnavailable
from infra.mail.message import Mail, compose, sender_address

EXPECTED: Final = (
    "use smtp://user:password@host:587, smtp+starttls://... to require encryption, or smtps://...; user and password "
    "are optional, with special characters percent-encoded"
)
_INVALID: Final = f"not the URL of an SMTP server; {EXPECTED}"
_PERMANENT: Final = range(500, 600)

Security = Literal["opportunistic", "starttls", "tls"]
_SCHEMES: Final[dict[str, tuple[Security, int]]] = {
    "smtp": ("opportunistic", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}
_START_TLS: Final[dict[Security, bool | None]] = {"opportunistic": None, "starttls": True, "tls": False}
"""The client's option: require STARTTLS, do not use it, or (None) use it if it is offered."""


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
            port, host = parts.port or default_port, parts.hostname or ""
            host.encode("idna")  # as a connection does
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
        """Store the server, the sender, and the seconds that one step of sending may take; connect at the first mail.

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
        client = aiosmtplib.SMTP(
            hostname=self._server.host,
            port=self._server.port,
            local_hostname=socket.gethostname(),
            timeout=None,  # the client's own timeouts may lose a cancellation, on Python 3.11; `_within` does not
            use_tls=self._server.security == "tls",
            start_tls=_START_TLS[self._server.security],
            tls_context=self._tls,
        )
        try:
            await self._connect(client)
            await self._within(client.mail(_address(mail["From"])))
            await self._within(client.rcpt(_address(mail["To"])))
            await self._within(client.data(mail.as_bytes()))
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await self._within(client.quit())  # the server has accepted the mail, whatever it answers now
        except (aiosmtplib.SMTPRecipientRefused, aiosmtplib.SMTPDataError) as error:
            raise self._failure(error) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            # Not permanent: a wrong password or sender is a setting that can be corrected.
            raise MailUnavailable(f"{self._server.name}: {self._reason(error)}") from error
        finally:
            if client.transport is not None:
                # `close` would still send a buffered mail, which the next attempt sends again.
                cast("asyncio.WriteTransport", client.transport).abort()

    async def _connect(self, client: aiosmtplib.SMTP) -> None:
        await self._within(client.connect())
        if self._server.user is None or self._server.password is None:
            return
        if client.get_transport_info("sslcontext") is None:
            raise OSError(
                "no encryption is offered, and the password is not sent in the clear; set smtps:// in mail.smtp_url"
            )
        await self._within(client.login(self._server.user, self._server.password))

    async def _within(self, step: Awaitable[object]) -> None:
        async with asyncio.timeout(self._timeout):
            await step

    def _failure(self, error: aiosmtplib.SMTPResponseException) -> MailError:
        reason = f"{self._server.name} answered {_answer(error)}"
        return MailRejected(reason) if error.code in _PERMANENT else MailUnavailable(reason)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"timed out after {self._timeout:g} s"
        if isinstance(error, aiosmtplib.SMTPResponseException):
            return _answer(error)
        return str(error) or type(error).__name__


def _answer(error: aiosmtplib.SMTPResponseException) -> str:
    # The client decodes bytes that are not UTF-8 to surrogates, which can be neither logged nor stored.
    text = error.message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return f"{error.code} {text}"


def _address(header: AddressHeader) -> str:
    return header.addresses[0].addr_spec
