"""A short soak test; `make soak` runs long ones."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT, Processes, until
from tests.soak.__main__ import WORKERS, main
from tests.stacks import VARIABLE

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(300)]

PROC = Path("/proc")
STARTED = 19
"""Index of the start time among the fields of `/proc/PID/stat` after the command."""


def test_short_soak_violates_no_guarantee() -> None:
    assert main(["--minutes", "0.2", "--seed", "11", "--without", "clock"]) == 0


@pytest.mark.skipif(not PROC.is_dir(), reason="finds child processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_soak_with_all_processes_and_servers(number: signal.Signals) -> None:
    with Processes() as processes:
        environment = {VARIABLE: os.environ.get(VARIABLE, "sqlite")}
        soak = processes.python("-m", "tests.soak", "--minutes", "5", cwd=ROOT, env=environment)
        until(lambda: "publishers started" in soak.stdout, "the soak has started its processes", timeout=120)
        started = descendants(soak.pid)
        assert len(started) > WORKERS
        os.kill(soak.pid, number)
        assert soak.wait() == 128 + number, soak.stderr
        until(lambda: not started & running(), "all processes of the soak have ended")


def running() -> set[tuple[int, str]]:
    """Return the id and start time of every process on this machine that has not ended."""
    return {(pid, fields[STARTED]) for pid, fields in _processes() if fields[0] != "Z"}


def descendants(root: int) -> set[tuple[int, str]]:
    """Return the id and start time of each child process of `root`, of each child of these, and so on."""
    processes = dict(_processes())
    found = {root}
    while more := {pid for pid, fields in processes.items() if int(fields[1]) in found} - found:
        found |= more
    return {(pid, processes[pid][STARTED]) for pid in found - {root}}


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        try:
            found.append((int(path.parent.name), path.read_text(errors="replace").rpartition(")")[2].split()))
        except OSError:
            continue  # it has ended since
    return found
