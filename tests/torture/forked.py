"""Child processes that start fast: each is forked from a fork server that has imported all modules.

They have their own memory and files, and can be killed one by one.
"""

import asyncio
import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from bus.delivery import log_context
from infra.logging import configure_logging
from tests.e2e.processes import PATIENCE
from tests.torture.opening import Plan

PROGRAMS = (
    *(
        "worker",
        "publisher",
        "canceller",
        "ledger",
        "failing_publisher",
        "forgetful",
        "offline",
        "persistent",
        "bookkeeper",
    ),
    "scheduler",
)


class ForkedProcess:
    """A process that runs a program of these tests and logs into a file."""

    def __init__(self, program: str, plan: Plan, log: Path) -> None:
        self.number = plan.process
        self._log = log
        self._program = program
        log.touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"tests.torture.{each}" for each in PROGRAMS])
        self._process = context.Process(target=live, args=(program, plan, log), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    @property
    def stderr(self) -> str:
        """Its log so far."""
        return self._log.read_text(errors="replace")

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return its exit code once it has ended."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"{self} has not ended within {timeout:g} s:\n{self.stderr}"
        return self._process.exitcode

    def pause(self) -> None:
        """Send SIGSTOP."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.join()

    def __str__(self) -> str:
        return f"{self._program} {self.number}"


class ForkedProcesses:
    """All child processes of a test. At the end of the block it kills the running ones, and prints the logs."""

    def __init__(self) -> None:
        self._all: list[ForkedProcess] = []
        self._logs = tempfile.TemporaryDirectory(prefix="beneath-test-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for each in self._all:
            if each.running:
                each.kill()
        for each in self._all:
            # pytest shows it for a failed test only.
            print(f"--- {each}, exit code {each.wait()}\n{each.stderr[-8000:]}")  # noqa: T201
        self._logs.cleanup()

    def start(self, program: str, plan: Plan) -> ForkedProcess:
        """Start a program."""
        number = len(self._all) + 1
        child = ForkedProcess(program, replace(plan, process=number), Path(self._logs.name) / str(number))
        self._all.append(child)
        return child


def live(program: str, plan: Plan, log: Path) -> None:
    """Run the program in the child process."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_logging(level=plan.log_level, log_format="json", context=[log_context])
    asyncio.run(importlib.import_module(f"tests.torture.{program}").run(plan))


def _end_with_parent() -> None:
    # A killed test run cannot end its children itself.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
