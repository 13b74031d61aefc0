"""An SMTP server in the test's process, which can refuse recipients and mails."""

import asyncio
import threading
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass(slots=True)
class SmtpServer:
    """An SMTP server on a free port, in a separate thread."""

    refusals: dict[str, list[str]] = field(default_factory=dict)
    """What to answer the next attempts to mail an address; after them, and to all others, mail is accepted."""

    attempts: list[str] = field(default_factory=list)
    """The address of every attempt, oldest first."""

    _taken: list[tuple[str, bytes]] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread = field(init=False)
    _server: asyncio.Server = field(init=False)

    def __enter__(self) -> Self:
        listening = self._loop.create_server(lambda: SMTP(self), "127.0.0.1", 0)
        self._server = self._loop.run_until_complete(listening)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"smtp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def mails_to(self, address: str) -> list[EmailMessage]:
        """Return the accepted mails to an address, oldest first."""
        mails = [message_from_bytes(content, policy=default) for to, content in self._taken if to == address]
        assert all(isinstance(mail, EmailMessage) for mail in mails)
        return mails

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name for it
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        self.attempts.append(address)
        if refusals := self.refusals.get(address):
            return refusals.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self._taken += [(address, envelope.content) for address in envelope.rcpt_tos]
        return "250 OK"
