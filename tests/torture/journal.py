"""The journal of a torture test: one file in which all processes record their actions.

Each line is one write(2) to a file opened with O_APPEND: it survives SIGKILL, and the lines of all processes are in
the order of their writes. The checker uses that order, and no clock.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["ready", "accepted", "start", "end", "failed", "cancelled", "killing", "pausing", "cut off", "note"]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One action of one process."""

    kind: Kind
    process: int
    """The process's number; unlike its pid, the system never assigns it again."""

    at: float
    """Seconds since the epoch, by the machine's clock."""

    listener: str = ""
    key: str = ""
    n: int = 0
    """The event's number among those of its key."""

    attempt: int = 0
    id: str = ""
    text: str = ""


class Journal:
    """Writes the journal, for the process with this number; 0 is the test's own."""

    def __init__(self, path: Path, process: int = 0) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._process = process

    def write(
        self,
        kind: Kind,
        *,
        listener: str = "",
        key: str = "",
        n: int = 0,
        attempt: int = 0,
        id: str = "",  # noqa: A002 - a message's id, by its own name
        text: str = "",
        process: int | None = None,
    ) -> None:
        """Append a line about this process, or about another process."""
        line = Line(
            kind=kind,
            process=self._process if process is None else process,
            at=time.time(),
            listener=listener,
            key=key,
            n=n,
            attempt=attempt,
            id=id,
            text=text,
        )
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Reader:
    """Reads the journal; each call of `lines` continues where the previous one ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines: list[Line] = []
        self._processes: set[int] = set()

    def lines(self) -> list[Line]:
        """Return every line so far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            new = list(_decoded(whole))
            self._lines += new
            self._processes.update(each.process for each in new if each.kind not in {"killing", "pausing", "cut off"})
        return self._lines

    def processes(self) -> set[int]:
        """Return the numbers of the processes that have written about themselves so far."""
        self.lines()
        return self._processes

    def of(self, kind: Kind, listener: str | None = None) -> list[Line]:
        """Return all lines of a kind so far, of one listener if it is given."""
        return [each for each in self.lines() if each.kind == kind and listener in {None, each.listener}]


def _decoded(data: bytes) -> Iterator[Line]:
    decoder = msgspec.json.Decoder(Line)
    return (decoder.decode(each) for each in data.splitlines())
