"""The `Mailer` interface, and a mailer that writes to a folder."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from infra.clock import Clock, SystemClock
from infra.files import private_file, private_folder
from infra.mail.errors import MailUnavailable
from infra.mail.message import Mail, compose, safe_id, sender_address


class Mailer(Protocol):
    """A sender of mail. Success means that the next hop has accepted the mail, not that it arrived."""

    async def send(self, message: Mail) -> None:
        """Send a message; return once the next hop has accepted it.

        Raises:
            MailRejected: the message was rejected permanently.
            MailUnavailable: the message could not be sent now; a later attempt may succeed.
        """
        ...


class FolderMailer:
    """A mailer that writes each mail to `<message id>.eml` in a folder; a second attempt replaces the file."""

    def __init__(self, folder: Path, sender: str, clock: Clock | None = None) -> None:
        """Store the folder, which the first mail creates, and the sender; raise ValueError for an invalid sender."""
        sender_address(sender)
        self._folder = folder.absolute()  # a later change of the working directory has no effect
        self._sender = sender
        self._clock = clock or SystemClock()

    async def send(self, message: Mail) -> None:
        content = compose(message, self._sender, datetime.fromtimestamp(self._clock.time(), UTC)).as_bytes()
        try:
            await asyncio.to_thread(_replace, self._folder / f"{safe_id(message.id)}.eml", content)
        except OSError as error:
            raise MailUnavailable(f"cannot write mail to {self._folder}: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    # Written to a temporary file and renamed, so that readers of the folder never see half a mail.
    private_folder(path.parent)
    unfinished = path.parent / f".{uuid4().hex}.tmp"
    try:
        private_file(unfinished)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
