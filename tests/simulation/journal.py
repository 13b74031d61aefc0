"""The journal of a simulation: the lines that `tests.torture.checker` reads, and a trace of all other steps."""

import hashlib
from collections import Counter
from pathlib import Path

from tests.simulation.loop import EPOCH, Process, SimulatedLoop
from tests.torture.journal import Kind, Line


class SimulatedJournal:
    """A journal in memory, without the lines of processes that are dead."""

    def __init__(self, loop: SimulatedLoop, folder: Path | None) -> None:
        self.lines: list[Line] = []
        self.trace: list[str] = []
        self.runs: Counter[tuple[str, str, int]] = Counter()
        """Number of runs by listener, key and position of the event."""

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
        id: str = "",  # noqa: A002 - the message's id
        text: str = "",
    ) -> None:
        """Append a line about a process to the journal and to the trace."""
        if process.dead:
            return
        if kind == "start":
            self.runs[(listener, key, n)] += 1
        self.lines.append(
            Line(
                kind=kind,
                process=process.pid,
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
        """Append a line to the trace only."""
        if not process.dead:
            # The folder's name differs in each run, but the trace of a seed must not.
            self.trace.append(f"{self._loop.time():10.4f} [{process.pid}] {text.replace(self._folder, 'FOLDER')}")

    def unfinished(self, pid: int) -> bool:
        """Whether a handler of a process has started and not ended."""
        kinds = Counter(line.kind for line in self.lines if line.process == pid)
        return kinds["start"] > kinds["end"] + kinds["failed"] + kinds["cancelled"]

    def digest(self) -> str:
        """Return a digest of the trace, which is equal for all runs of one seed."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]
