"""Starts real processes for tests, waits for what they do, and ends every one of them, whatever the test does."""

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
"""How long, in seconds, to wait for what should come at once: only a machine under load, or a failure, needs it."""

POLL = 0.02


def until(condition: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Return the first true value of `condition`, looking again and again; `AssertionError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL)


def let_pass(seconds: float) -> None:
    """Return that much later: for what has to last, never for what has to happen."""
    start = time.monotonic()
    until(lambda: time.monotonic() - start > seconds, "time passes")


class Process:
    """A process of this test; what it writes is kept in files, so that it never waits for a reader."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], logs: Path) -> None:
        self._stdout, self._stderr = logs / "stdout", logs / "stderr"
        self.arguments = tuple(arguments)
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._popen = subprocess.Popen(  # noqa: S603 - the tests' own arguments
                arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def stdout(self) -> str:
        """What it wrote so far to standard output."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote so far to standard error."""
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
        """Send SIGKILL, and return when it is gone."""
        self._popen.kill()
        self._popen.wait()

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.arguments[1:])[:120]})"


class Processes:
    """Every process that a test started. On leaving, what still runs is killed, and what was logged is printed."""

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
            # pytest shows it for a failed test only.
            print(f"--- {each}, exit code {each.wait()}\n{each.stderr[-8000:]}")  # noqa: T201
        self._logs.cleanup()

    def start(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a process, with `env` put over this one's environment."""
        logs = Path(self._logs.name) / str(len(self._all))
        logs.mkdir()
        process = Process(arguments, cwd=cwd, env={**clean_environment(), **(env or {})}, logs=logs)
        self._all.append(process)
        return process

    def python(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start this interpreter."""
        return self.start([sys.executable, *arguments], cwd=cwd, env=env)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would change the settings, or how tests of tests run."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("BENEATH_", "PYTEST_"))}
