"""What happened in a simulation, in order: the lines that `tests.torture.checker` reads, and a trace of all else."""

import hashlib
from collections import Counter
from pathlib import Path

from tests.simulation.loop import EPOCH, Process, SimulatedLoop
from tests.torture.journal import Kind, Line


class SimulatedJournal:
    """Kept in memory. What a killed process would write is left out."""

    def __init__(self, loop: SimulatedLoop, folder: Path | None) -> None:
        self.lines: list[Line] = []
        self.trace: list[str] = []
        self.runs: Counter[tuple[str, str, int]] = Counter()
        """How often each listener began with each event."""

        self._loop = loop
        self._folder = str(folder)

    def write(
        self,
        process: Process,
        kind: Kind,
        *,
        listener: str = "",
        key: str = "",
        n: int = 0,
        attempt: int = 0,
        id: str = "",  # noqa: A002 - a message's id, by its own name
        text: str = "",
    ) -> None:
        """Append a line about a process."""
        if process.dead:
            return
        if kind == "start":
            self.runs[(listener, key, n)] += 1
        self.lines.append(
            Line(
                kind=kind,
                pid=process.pid,
                at=EPOCH + self._loop.time(),
                listener=listener,
                key=key,
                n=n,
                attempt=attempt,
                id=id,
                text=text,
            )
        )
        self.note(process, f"{kind} {listener} {key}/{n} attempt {attempt} {text}")

    def note(self, process: Process, text: str) -> None:
        """Append to the trace alone."""
        if not process.dead:
            # The folder's name differs from run to run, and the trace of one seed must not.
            self.trace.append(f"{self._loop.time():10.4f} [{process.pid}] {text.replace(self._folder, 'FOLDER')}")

    def unfinished(self, pid: int) -> bool:
        """Whether a handler of a process has begun and not ended."""
        kinds = Counter(line.kind for line in self.lines if line.pid == pid)
        return kinds["start"] > kinds["end"] + kinds["failed"] + kinds["cancelled"]

    def digest(self) -> str:
        """Return what two runs of one seed have in common if they are the same."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]
