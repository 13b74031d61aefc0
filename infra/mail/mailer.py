"""Where mail goes."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from infra.clock import Clock, SystemClock
from infra.files import private_file, private_folder
from infra.mail.errors import MailUnavailable
from infra.mail.message import Message, compose, safe_id, sender_address


class Mailer(Protocol):
    """Sends mail; says what became of it only as far as the next hop knows."""

    async def send(self, message: Message) -> None:
        """Return once the next hop has taken responsibility for `message`.

        Raises:
            MailRejected: it will never be accepted.
            MailUnavailable: it did not work now.
        """
        ...


class FolderMailer:
    """Writes every mail to a folder, as `<message id>.eml`; the same message again replaces its file."""

    def __init__(self, folder: Path, sender: str, clock: Clock | None = None) -> None:
        """Take where to write and who the mail is from; do not touch the disk yet. Raises ValueError for no sender."""
        sender_address(sender)
        self._folder = folder.absolute()  # whoever changes the working directory does not move the mail
        self._sender = sender
        self._clock = clock or SystemClock()

    async def send(self, message: Message) -> None:
        content = compose(message, self._sender, datetime.fromtimestamp(self._clock.time(), UTC)).as_bytes()
        try:
            await asyncio.to_thread(_replace, self._folder / f"{safe_id(message.id)}.eml", content)
        except OSError as error:
            raise MailUnavailable(f"cannot write mail to {self._folder}: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    # Whoever watches the folder must never see half a mail: written beside, then renamed.
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
