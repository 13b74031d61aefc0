"""CPU time and memory of a server and its child processes, as /proc reports them."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server has used so far."""

    cpu: float
    """Seconds of CPU, those of ended child processes included."""

    memory: float
    """MB of resident memory that is not backed by files or shared."""

    def since(self, before: "Usage") -> "Usage":
        """Return the CPU seconds since then, and the memory now."""
        return Usage(self.cpu - before.cpu, self.memory)


def usage(*servers: int) -> Usage | None:
    """Return the usage of these processes and their children together; None on a system without /proc."""
    if not PROC.is_dir():
        return None
    cpu = memory = 0.0
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            parent, process = int(fields[1]), int(folder.name)
            if process not in servers and parent not in servers:
                continue
            cpu += sum(int(each) for each in fields[11 : 15 if process in servers else 13]) / TICKS
            memory += _anonymous(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return Usage(cpu, memory)


def _anonymous(folder: Path) -> float:
    _, found, rest = (folder / "status").read_text("utf-8", "replace").partition("RssAnon:")
    return int(rest.split()[0]) / 1024 if found else 0.0
