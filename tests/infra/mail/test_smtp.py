"""The SMTP mailer: delivery, encryption, authentication and errors."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from infra.mail import Mail, MailRejected, MailUnavailable, SmtpMailer
from infra.mail.smtp import SmtpServer

SENDER = "Beneath <no-reply@beneath.example>"
MAIL = Mail(id="one", to="ada@example.com", subject="Hello", text="Hello Ada\n.\nFrom here on\n")


@dataclass(slots=True)
class RecordingHandler:
    """Handler of a test SMTP server: the accepted mails, and the replies to the next recipients and mails."""

    taken: list[Envelope] = field(default_factory=list)
    rcpt: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name for it
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.rcpt:
            return self.rcpt.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.data:
            return self.data.pop(0)
        self.taken.append(envelope)
        return "250 OK"


@asynccontextmanager
async def serving(make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def test_mail_arrives_unchanged() -> None:
    handler = RecordingHandler()
    async with serving(lambda: SMTP(handler)) as port:
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)
    envelope = handler.taken[0]
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@beneath.example", ["ada@example.com"])
    assert isinstance(envelope.content, bytes)
    assert b"Message-ID: <one@beneath.example>\r\n" in envelope.content
    assert envelope.content.endswith(b"\r\n\r\nHello Ada\r\n.\r\nFrom here on\r\n")


@pytest.mark.parametrize("step", ["rcpt", "data"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("450 come back later", MailUnavailable),
        ("452 mailbox full", MailUnavailable),
        ("550 no such mailbox", MailRejected),
        ("554 looks like spam", MailRejected),
    ],
)
async def test_temporary_and_permanent_refusals_are_distinguished(
    step: str, answer: str, error: type[Exception]
) -> None:
    handler = RecordingHandler()
    getattr(handler, step).append(answer)
    async with serving(lambda: SMTP(handler)) as port:
        mailer = SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER)
        with pytest.raises(error, match=answer):
            await mailer.send(MAIL)
        await mailer.send(MAIL)
    assert len(handler.taken) == 1


@pytest.mark.parametrize(("command", "error"), [(b"MAIL", MailUnavailable), (b"RCPT", MailRejected)])
async def test_answer_that_is_not_utf8_is_reported_without_surrogates(command: bytes, error: type[Exception]) -> None:
    class LatinServer(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)
            self.transport.write(b"220 hello\r\n")

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"550 Empf\xe4nger unbekannt\r\n" if data.startswith(command) else b"250 OK\r\n")

    async with serving(LatinServer) as port:
        with pytest.raises(error, match="550 Empf\ufffdnger unbekannt"):
            await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)


async def test_unreachable_server_is_a_temporary_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MailUnavailable, match=f"127.0.0.1:{port}"):
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)


async def test_encryption_is_used_if_the_server_offers_it(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    handler = RecordingHandler()
    async with serving(lambda: SMTP(handler, tls_context=server_tls, require_starttls=True)) as port:
        for scheme in ("smtp", "smtp+starttls"):
            await SmtpMailer(f"{scheme}://localhost:{port}", SENDER, tls=client_tls).send(MAIL)
    assert len(handler.taken) == 2


async def test_connection_is_encrypted_from_the_start_with_smtps(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    handler = RecordingHandler()
    async with serving(lambda: SMTP(handler), server_tls) as port:
        await SmtpMailer(f"smtps://localhost:{port}", SENDER, tls=client_tls).send(MAIL)
    assert len(handler.taken) == 1


async def test_untrusted_certificate_is_refused(server_tls: ssl.SSLContext) -> None:
    handler = RecordingHandler()
    async with serving(lambda: SMTP(handler, tls_context=server_tls)) as port:
        with pytest.raises(MailUnavailable, match="certificate"):
            await SmtpMailer(f"smtp+starttls://localhost:{port}", SENDER).send(MAIL)
    assert handler.taken == []


async def test_required_encryption_that_is_not_offered_fails() -> None:
    async with serving(lambda: SMTP(RecordingHandler())) as port:
        with pytest.raises(MailUnavailable, match="STARTTLS"):
            await SmtpMailer(f"smtp+starttls://127.0.0.1:{port}", SENDER).send(MAIL)


async def test_password_is_sent_over_encrypted_connections_only(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    handler, seen = RecordingHandler(), list[LoginPassword]()

    def authenticate(
        _server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: LoginPassword
    ) -> AuthResult:
        seen.append(data)
        return AuthResult(success=data == LoginPassword(b"ada", b"p@ss"), handled=False)

    async with serving(lambda: SMTP(handler, tls_context=server_tls, authenticator=authenticate)) as port:
        await SmtpMailer(f"smtp://ada:p%40ss@localhost:{port}", SENDER, tls=client_tls).send(MAIL)
        with pytest.raises(MailUnavailable, match="535"):
            await SmtpMailer(f"smtp://ada:wrong@localhost:{port}", SENDER, tls=client_tls).send(MAIL)
    assert [data.password for data in seen][:1] == [b"p@ss"]
    async with serving(lambda: SMTP(handler, authenticator=authenticate, auth_require_tls=False)) as port:
        with pytest.raises(MailUnavailable, match="in the clear"):
            await SmtpMailer(f"smtp://ada:p%40ss@127.0.0.1:{port}", SENDER).send(MAIL)
    assert len(handler.taken) == 1


@pytest.mark.parametrize("password", ["pä ß:@/?#%\"'\\", "\u65e5\u672c", "line\nend", "x" * 200])
async def test_a_user_and_a_password_of_any_characters_log_in(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, password: str
) -> None:
    handler, user = RecordingHandler(), f"ada@{password[:2]}"

    def authenticate(
        _server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: LoginPassword
    ) -> AuthResult:
        return AuthResult(success=data == LoginPassword(user.encode(), password.encode()), handled=False)

    async with serving(lambda: SMTP(handler, tls_context=server_tls, authenticator=authenticate)) as port:
        for given in (password, f"{password}no"):
            url = f"smtp://{quote(user, safe='')}:{quote(given, safe='')}@localhost:{port}"
            mailer = SmtpMailer(url, SENDER, tls=client_tls)
            if given == password:
                await mailer.send(MAIL)
            else:
                with pytest.raises(MailUnavailable, match="535"):
                    await mailer.send(MAIL)
    assert len(handler.taken) == 1


def test_smtp_url_is_shown_without_its_password() -> None:
    server = SmtpServer.parse("smtp://ada:hunter2@mail")
    assert server.password == "hunter2"
    assert "hunter2" not in repr(server)
    with pytest.raises(ValueError, match="NUL"):
        SmtpServer.parse("smtp://ada:hun%00ter2@mail")


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[int, threading.Event]]:
    """Run a server that accepts connections, sends the greeting and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []
        greeted = threading.Event()

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])
                    held[-1].sendall(b"220 hello\r\n")
                    greeted.set()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield listener.getsockname()[1], greeted
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


async def test_silent_server_is_abandoned_after_the_timeout() -> None:
    with silent_server() as (port, _), pytest.raises(MailUnavailable, match="timed out"):
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER, timeout=0.05).send(MAIL)


async def test_cancelled_sender_ends_without_waiting_for_the_server() -> None:
    with silent_server() as (port, greeted):
        sending = asyncio.create_task(SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER, timeout=30).send(MAIL))
        await asyncio.to_thread(greeted.wait)
        sending.cancel()
        await asyncio.wait({sending}, timeout=5)
        assert sending.cancelled()


async def test_cancellation_that_meets_an_answer_is_not_lost() -> None:
    with silent_server() as (port, _):
        for turns in range(20):
            sending = asyncio.create_task(SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER, timeout=30).send(MAIL))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait({sending}, timeout=5)
            assert sending.cancelled(), turns


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "smtp://", "smtp://:25", "smtp://host:x", "smtp://host/path", "smtp://ada@host",
     "smtp://host?starttls=1", "smtp://host..example", f"smtp://{'x' * 64}.example"],
)  # fmt: skip
def test_invalid_url_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="use smtp://") as caught:
        SmtpMailer(url.replace("://", "://u:hunter2@") if "ada" not in url else url, SENDER)
    assert "hunter2" not in str(caught.value)
