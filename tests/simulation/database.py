"""A real SQLite database in a file, whose statements run in the event loop's thread and take virtual time."""

import asyncio
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dependencies.migrations import BUS
from infra.db import Database
from infra.db.migrate import upgrade
from infra.db.sqlite_driver import SQLiteConnection, is_busy
from infra.db.sqlite_thread import Job
from tests.simulation.loop import PROCESS, Process

_T = TypeVar("_T")

LATENCY = 0.002
"""Virtual seconds that a statement takes at most."""

BUSY = 0.02
"""Maximum virtual seconds between two attempts to lock a file that is locked."""

DISK_ERRORS = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)

EFFECTS = "CREATE TABLE effect (listener TEXT, key TEXT, n INTEGER)"


class _Jobs:
    """A replacement for a connection's thread: runs one job after another, each after some virtual time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._jobs: deque[Job] = deque()
        self._busy = False

    def start(self) -> None:
        """Start nothing."""

    def end(self) -> None:
        """End nothing: it has run all jobs, and gets no more."""

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        if not self._busy:
            self._busy = True
            self._later(LATENCY)

    def _later(self, seconds: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a connection of a killed process is collected after the loop has ended
            return
        loop.call_later(self._process.random.uniform(0, seconds), self._do)

    def _do(self) -> None:
        self._jobs.popleft()()
        self._busy = bool(self._jobs)
        if self._busy:
            self._later(LATENCY)


class InlineConnection(SQLiteConnection):
    """A connection without a thread; killing its process closes it, and rolls back an open transaction."""

    def __init__(self, opener: Callable[[], sqlite3.Connection], **options: Any) -> None:  # noqa: ANN401 - those of the base class
        process = self._process = PROCESS.get()
        super().__init__(opener, jobs=_Jobs(process), **options)
        process.on_kill.append(self._sever)

    async def begin_immediate(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                await super().begin_immediate(0)
            except sqlite3.OperationalError as error:
                if not is_busy(error) or loop.time() >= deadline:
                    raise
                await asyncio.sleep(PROCESS.get().random.uniform(0, BUSY))
            else:
                return

    def _guarded(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        self._perhaps_fail()
        return super()._guarded(statement)

    def _begin_immediate(self) -> None:
        self._perhaps_fail()
        super()._begin_immediate()

    def _commit(self) -> None:
        self._perhaps_fail()
        super()._commit()

    def _perhaps_fail(self) -> None:
        random = self._process.random
        if random.random() < self._process.disk_errors:
            error = sqlite3.OperationalError("simulated: the disk does not answer")
            error.sqlite_errorcode = random.choice(DISK_ERRORS)
            raise error

    def _sever(self) -> None:
        connection, self._connection = self._connection, None
        self._running = False
        if connection is not None:
            connection.close()


class Files:
    """Copies of a migrated database file, one for each simulation, in memory where /dev/shm exists."""

    def __init__(self) -> None:
        shared = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(
            prefix="beneath-simulation-", dir=shared if shared.is_dir() else None
        )
        self._template = Path(self._folder.name) / "template.db"
        asyncio.run(_migrate(self._template))

    def copy(self) -> Path:
        """Return the path of a new copy; the previous copy is deleted."""
        path = Path(self._folder.name) / "simulated.db"
        for stale in path.parent.glob("simulated.db*"):
            stale.unlink()
        shutil.copy(self._template, path)
        return path

    def close(self) -> None:
        """Delete the folder with all files."""
        self._folder.cleanup()


async def _migrate(path: Path) -> None:
    db = Database(f"sqlite:///{path}")
    await db.open()
    try:
        await upgrade(db, [BUS])
        async with db.transaction() as transaction:
            await (await transaction.connection()).exec_driver_sql(EFFECTS)
    finally:
        await db.close()
