"""A database and queue on which processes of both releases run, and their journal."""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.e2e.processes import ROOT, Process, Processes, until
from tests.stacks import Place
from tests.torture.checker import check
from tests.torture.journal import Journal, Line, Reader
from tests.upgrade.program import Plan

ARCHIVE = Path(__file__).with_name("release.tar.xz")

QUICK = {
    "BENEATH_ENV": "production",
    "BENEATH_LOG_LEVEL": "warning",
    "BENEATH_WORKER_LEASE": "3",
    "BENEATH_WORKER_RENEW": "0.5",
    "BENEATH_WORKER_RECOVER_EVERY": "0.5",
    "BENEATH_WORKER_PORT": "0",
    "BENEATH_MQ_DEDUPE_WINDOW": "3600",
}
"""Settings with which a test need not wait long for the claims of a dead worker, nor forgets ids on a busy machine."""

PATIENCE = 180.0
"""Timeout in seconds of waits: these tests start many processes, each of which takes long on a busy machine."""

PENDING = ("ready", "retrying", "scheduled", "in_flight", "parked", "blocked")


@dataclass(frozen=True, slots=True)
class Release:
    """The source tree of a release."""

    tree: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which Python imports this tree, and the tests from this project."""
        return {"PYTHONPATH": os.pathsep.join(map(str, (self.tree, self.tree / "cmd", ROOT)))}


def unpacked(folder: Path) -> Release:
    """Return the previous release, unpacked into a folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return Release(folder)


NEW = Release(ROOT)
"""The code under test."""

Row = dict[str, Any]
"""The statistics of one listener, as JSON."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The statistics of queue and outbox, as a process of a release reads them."""

    path: Path

    @property
    def rows(self) -> dict[str, Row]:
        """The latest statistics, by listener; the waiting rows of the outbox are `ready` in `outbox`."""
        rows: dict[str, Row] = json.loads(self.path.read_bytes())
        return rows

    def pending(self) -> dict[str, dict[str, int]]:
        """Return the numbers of pending deliveries that are not 0, by listener and state."""
        found = {name: {each: row[each] for each in PENDING if row.get(each)} for name, row in self.rows.items()}
        return {name: states for name, states in found.items() if states}

    def wait(self, condition: Callable[[dict[str, Row]], bool], what: str) -> None:
        """Wait until the statistics meet a condition."""
        try:
            until(lambda: condition(self.rows), what, timeout=PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.pending()}") from None

    def wait_drained(self, *but: str) -> None:
        """Wait until the outbox is empty, and no listener but those named has pending deliveries."""
        self.wait(lambda _: self.pending().keys() <= set(but), "the queue is empty")


@dataclass(slots=True)
class Deployment:
    """The processes of one test, of both releases, on one database and queue."""

    processes: Processes
    folder: Path
    place: Place
    started: dict[int, tuple[Process, Release]] = field(default_factory=dict)
    journal: Reader = field(init=False)
    """The journal of all processes."""

    def __post_init__(self) -> None:
        self.journal = Reader(self.path)

    @property
    def path(self) -> Path:
        """The file of the journal."""
        return self.folder / "journal.jsonl"

    def command(self, release: Release, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run `beneath` of a release, which must succeed; return its output, parsed with `--json`."""
        process = self.beneath(release, *arguments)
        assert process.wait(PATIENCE) == 0, process.stderr
        return json.loads(process.stdout) if "--json" in arguments else process.stdout

    def beneath(self, release: Release, *arguments: str) -> Process:
        """Start `beneath` of a release."""
        return self.processes.python(
            "-P", "-m", "beneath", *arguments, cwd=self.folder, env=self._environment(release, {})
        )

    def start(self, release: Release, env: Mapping[str, str] | None = None, **plan: Any) -> int:  # noqa: ANN401 - a plan's
        """Start the program of a release; return its number in the journal."""
        number = len(self.started) + 1
        text = msgspec.json.encode(Plan(journal=str(self.path), process=number, **plan)).decode()
        process = self.processes.python(
            "-P", "-m", "tests.upgrade.program", text, cwd=self.folder, env=self._environment(release, env or {})
        )
        self.started[number] = process, release
        return number

    def wait_ready(self, *numbers: int) -> None:
        """Wait until processes are ready, and check that each runs the code of its release."""
        for number in numbers:
            process, release = self.started[number]

            def ready(number: int = number, process: Process = process) -> Line | None:
                lines = [each for each in self.journal.of("ready") if each.process == number]
                assert lines or process.running, process.stderr
                return lines[0] if lines else None

            line = until(ready, f"{process} is ready", timeout=PATIENCE)
            assert line is not None
            assert Path(line.text) == release.tree

    def run(self, release: Release, env: Mapping[str, str] | None = None, **plan: Any) -> None:  # noqa: ANN401 - a plan's
        """Run the program of a release to its end."""
        number = self.start(release, env, **plan)
        process, _ = self.started[number]
        assert process.wait(PATIENCE) == 0, process.stderr
        self.wait_ready(number)

    def stop(self, *numbers: int) -> None:
        """Stop processes gracefully."""
        for number in numbers:
            self.started[number][0].terminate()
        for number in numbers:
            process, _ = self.started[number]
            assert process.wait(PATIENCE) == 0, process.stderr

    def kill(self, *numbers: int) -> None:
        """Record that processes are killed, and kill them."""
        writer = Journal(self.path)
        for number in numbers:
            writer.write("killing", process=number)
            self.started[number][0].kill()
        writer.close()

    @contextmanager
    def watched(self, release: Release, **plan: Any) -> Iterator[Watch]:  # noqa: ANN401 - a plan's
        """Run the program of a release for the block; when it has carried out its plan, it watches the queue."""
        path = self.folder / "stats.json"
        path.unlink(missing_ok=True)
        number = self.start(release, watch=str(path), **plan)
        self.wait_ready(number)
        until(path.exists, "there are statistics", timeout=PATIENCE)
        yield Watch(path)
        self.stop(number)

    def _environment(self, release: Release, env: Mapping[str, str]) -> dict[str, str]:
        return {**QUICK, **self.place.environment, **release.environment, **env}

    def ends(self, listener: str) -> list[tuple[str, int]]:
        """Return the events that a listener has handled, in order, with repetitions."""
        return [(each.key, each.n) for each in self.journal.of("end", listener)]

    def notes(self) -> list[tuple[str, str]]:
        """Return the ids and texts of notes."""
        return [(each.id, each.text) for each in self.journal.of("note")]


def violations(
    lines: Iterable[Line], listener: str, *events: str, ordered: bool, without: str | None = None
) -> list[str]:
    """Return the violations of a listener's promises for events of these classes; leave out the key `without`."""
    found = [each for each in lines if each.key != without and (each.kind != "accepted" or each.text in events)]
    return check(found, listener, ordered=ordered)
