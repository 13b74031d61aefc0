"""The mailer that writes each mail to a file of a folder."""

import email
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.mail import FolderMailer, Mail, MailRejected, MailUnavailable

SENDER = "Beneath <no-reply@beneath.example>"


def read(path: Path) -> EmailMessage:
    message = email.message_from_bytes(path.read_bytes(), policy=default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(mail: EmailMessage) -> str:
    return str(mail.get_content()).replace("\r\n", "\n")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_mail_is_written_as_a_standard_message_file(tmp_path: Path) -> None:
    mailer = FolderMailer(tmp_path / "data" / "mail", SENDER, FakeClock())
    await mailer.send(Mail(id="one", to="ada@example.com", subject="Grüße", text="Hallo Ada,\n\nschön!\n"))
    mail = read(tmp_path / "data" / "mail" / "one.eml")
    assert mail["From"] == SENDER
    assert mail["To"] == "ada@example.com"
    assert mail["Subject"] == "Grüße"
    assert mail["Message-ID"] == "<one@beneath.example>"
    assert mail["Date"].datetime.timestamp() == FakeClock().time()
    assert text_of(mail) == "Hallo Ada,\n\nschön!\n"
    assert not mail.defects


async def test_the_same_mail_again_replaces_its_file(tmp_path: Path) -> None:
    mailer = FolderMailer(tmp_path, SENDER)
    for text in ("first", "second"):
        await mailer.send(Mail(id="one", to="ada@example.com", subject="Hello", text=text))
    assert names(tmp_path) == ["one.eml"]
    assert text_of(read(tmp_path / "one.eml")) == "second\n"


@pytest.mark.parametrize(
    "message",
    [
        Mail(to="ada@example.com\r\nBcc: eve@example.com", subject="Hello", text=""),
        Mail(to="ada@example.com, eve@example.com", subject="Hello", text=""),
        Mail(to="Ada <ada@example.com>", subject="Hello", text=""),
        Mail(to="", subject="Hello", text=""),
        Mail(to="ada@example.com", subject="Hello\nBcc: eve@example.com", text=""),
        Mail(to="ada@example.com", subject="Hello\u2028Bcc: eve@example.com", text=""),
        Mail(to="ada@example.com", subject="=?utf-8?q?Hello=0d=0aBcc:eve@example.com?=", text=""),
        Mail(to="ada@example.com", subject="Hello =?utf-8?q?=0a?=", text=""),
        Mail(to='"=?utf-8?q?a=0d=0aBcc:eve?="@example.com', subject="Hello", text=""),
    ],
)
async def test_header_injection_is_prevented(tmp_path: Path, message: Mail) -> None:
    with pytest.raises(MailRejected):
        await FolderMailer(tmp_path, SENDER).send(message)
    assert names(tmp_path) == []


async def test_id_cannot_write_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    await FolderMailer(folder, SENDER).send(Mail(id="../../evil", to="a@b.example", subject="Hello", text=""))
    assert names(tmp_path) == ["mail"]
    assert names(folder) == ["-evil.eml"]


async def test_line_of_one_dot_and_long_lines_are_kept(tmp_path: Path) -> None:
    text = "before\n.\nafter\n" + "x" * 5_000 + "\nFrom here\n"
    await FolderMailer(tmp_path, SENDER).send(Mail(id="one", to="a@b.example", subject="Hello", text=text))
    assert text_of(read(tmp_path / "one.eml")) == text
    assert max(len(line) for line in (tmp_path / "one.eml").read_bytes().splitlines()) <= 998


async def test_unwritable_folder_is_a_temporary_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MailUnavailable, match="cannot write mail"):
        await FolderMailer(tmp_path / "file", SENDER).send(Mail(to="a@b.example", subject="Hello", text=""))


@pytest.mark.parametrize("to", ["adä@example.com", "ada@exämple.com"])
async def test_recipient_that_is_not_ascii_is_rejected(tmp_path: Path, to: str) -> None:
    with pytest.raises(MailRejected, match=r"(?i)ascii"):
        await FolderMailer(tmp_path, SENDER).send(Mail(to=to, subject="Hello", text=""))
    assert names(tmp_path) == []


@pytest.mark.parametrize("sender", ["", "nobody", "a@b\nBcc: c@d", "Ada <ada>", "Ada <ada@exämple.com>"])
def test_invalid_sender_is_refused_at_once(tmp_path: Path, sender: str) -> None:
    with pytest.raises(ValueError, match="invalid sender"):
        FolderMailer(tmp_path, sender)
