"""The processes of a measurement: started with a job, read line by line, and killed at the end."""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.environments import ROOT
from tests.bench.protocol import Job

PATIENCE = 120.0
"""Seconds that a step of a measurement may take."""

CHECK_EVERY = 0.25
"""Seconds between two checks whether a process has ended without an answer."""


class MeasurementFailed(Exception):
    """A process has failed, or has not answered in time."""


class Child:
    """One process, and what it has answered so far."""

    def __init__(self, python: Path, module: str, job: Job) -> None:
        self.answers: dict[str, Any] = {}
        self._name = f"{module} ({job.role})"
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by kill()
        self._answered = threading.Condition()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENEATH_", "PYTHON"))}
        self.spawned = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603  # the modules of this package
            [str(python), "-m", module, job.text()],
            cwd=ROOT,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def go(self) -> None:
        """Tell a worker that waits to begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Return all answers when the process has ended.

        Raises:
            MeasurementFailed: the process failed, or has not ended in time.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MeasurementFailed(f"{self._name} took more than {timeout:g} s") from None
        self._reader.join()
        if code:
            raise MeasurementFailed(f"{self._name} failed: {self.last_words()}")
        return self.answers

    def kill(self) -> None:
        """End the process at once, and forget what it wrote."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self._said):
            if stream is not None:
                stream.close()

    def last_words(self) -> str:
        """Return the last line of its standard error."""
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.process.poll()}"

    def wait_answered(self, seconds: float) -> None:
        """Wait for the next answer, at most for these seconds."""
        with self._answered:
            self._answered.wait(seconds)

    def check(self) -> None:
        """Raise MeasurementFailed if the process has ended."""
        if self.process.poll() is not None:
            raise MeasurementFailed(f"{self._name} ended: {self.last_words()}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answers = json.loads(line)
                with self._answered:
                    self.answers.update(answers)
                    self._answered.notify_all()


def wait_until(children: Sequence[Child], enough: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Wait until the answers of these processes are enough.

    Raises:
        MeasurementFailed: a process has ended, or the answers do not suffice in time.
    """
    deadline = time.monotonic() + timeout
    while not enough():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            states = ", ".join(f"{child.answers.get('handled', 0)} handled" for child in children)
            raise MeasurementFailed(f"not done within {timeout:g} s: {states}; {children[0].last_words()}")
        children[0].wait_answered(CHECK_EVERY if len(children) == 1 else 0.02)
