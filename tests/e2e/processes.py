"""Processes of tests: starts them, waits for their effects, and ends all of them after the test."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
"""The project's root."""

PATIENCE = 60.0
"""Timeout in seconds of waits for events that normally come at once."""

POLL = 0.02


def until(condition: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Poll `condition` until it returns a true value; return that value, or raise AssertionError after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL)


def let_pass(seconds: float) -> None:
    """Wait for some seconds: only for states that must last, never for events that must happen."""
    start = time.monotonic()
    until(lambda: time.monotonic() - start > seconds, "time passes")


class Process:
    """A process of a test; its output goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], logs: Path) -> None:
        self._stdout, self._stderr = logs / "stdout", logs / "stderr"
        self.arguments = tuple(arguments)
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._popen = subprocess.Popen(  # noqa: S603 - the tests' own arguments
                arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._popen.poll() is None

    @property
    def stdout(self) -> str:
        """The standard output so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """The standard error so far."""
        return self._stderr.read_text(errors="replace")

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return its exit code once it has ended."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} has not ended within {timeout:g} s:\n{self.stderr[-4000:]}") from None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; return when the process has ended."""
        self._popen.kill()
        self._popen.wait()

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.arguments[1:])[:120]})"


class Processes:
    """The processes of a test. On exit it kills those that still run, and prints their logs."""

    def __init__(self) -> None:
        self._all: list[Process] = []
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
            # Pytest shows the output of failed tests only.
            print(f"--- {each}, exit code {each.wait()}\n{each.stderr[-8000:]}")  # noqa: T201
        self._logs.cleanup()

    def start(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a process; `env` overrides variables of this process's environment."""
        logs = Path(self._logs.name) / str(len(self._all))
        logs.mkdir()
        process = Process(arguments, cwd=cwd, env={**clean_environment(), **(env or {})}, logs=logs)
        self._all.append(process)
        return process

    def python(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start this Python interpreter."""
        return self.start([sys.executable, *arguments], cwd=cwd, env=env)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without variables that affect settings or nested test runs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("BENEATH_", "PYTEST_"))}
