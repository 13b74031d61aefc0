"""The servers and files on which all contenders are measured, and a fresh queue on them for each measurement."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from redis import Redis

from tests import postgres_servers, servers
from tests.bench.usage import Usage, usage

REDIS_KINDS = ("redis8", "valkey", "redis7")
"""The kinds of Redis server, the preferred one first."""

POSTGRES_SETTINGS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}
"""Every COMMIT is synced to the disk."""


@dataclass(frozen=True, slots=True)
class Place:
    """An empty queue for one measurement."""

    url: str
    broker: str | None
    servers: tuple[int, ...]
    """Process ids."""

    def usage(self) -> Usage | None:
        """Return what the servers have used so far; None without servers."""
        return usage(*self.servers) if self.servers else None


Prepare = Callable[[str], None]
"""Creates a contender's tables in the database of a URL."""


class Places:
    """Starts each server at its first use, and stops all of them at the end."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._databases: list[str] = []

    def close(self) -> None:
        """Stop the servers, and remove all files."""
        if "_redis" in vars(self):
            self._redis.kill()
        if "_postgres" in vars(self):
            self._postgres.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def fresh(self, server: str, contender: str, prepare: Prepare) -> Place:
        """Return an empty queue on `memory`, `sqlite`, `redis`, `postgres` or `postgres+redis`."""
        match server:
            case "memory":
                return Place("", None, ())
            case "sqlite":
                return Place(self._file(contender, prepare), None, ())
            case "redis":
                return Place(self._flushed(), None, (_pid(self._redis),))
            case "postgres":
                return Place(self._database(contender, prepare), None, (_pid(self._postgres),))
            case "postgres+redis":
                url = self._database(contender, prepare)
                return Place(url, self._flushed(), (_pid(self._postgres), _pid(self._redis)))
            case _:
                raise ValueError(server)

    @cached_property
    def redis_kind(self) -> str:
        """The kind of Redis server that is installed."""
        return next(kind for kind in REDIS_KINDS if servers.KINDS[kind]())

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers that have been started."""
        found: dict[str, str] = {}
        if "_redis" in vars(self):
            with Redis.from_url(self._redis.url) as client:
                info = client.info("server")
            name = "Valkey" if "valkey_version" in info else "Redis"
            found[name] = str(info.get("valkey_version", info["redis_version"]))
        if "_postgres" in vars(self):
            [row] = postgres_servers.wait_for(self._postgres.fetch("SHOW server_version"))
            found["PostgreSQL"] = str(row[0])
        return found

    @cached_property
    def _redis(self) -> servers.RedisServer:
        return servers.new_server(self.redis_kind)

    @cached_property
    def _postgres(self) -> postgres_servers.PostgresServer:
        return postgres_servers.new_server(**POSTGRES_SETTINGS)

    def _flushed(self) -> str:
        with Redis.from_url(self._redis.url) as client:
            client.flushall()
        return self._redis.url

    def _file(self, contender: str, prepare: Prepare) -> str:
        template = self._folder / f"{contender}.template.db"
        if not template.exists():
            prepare(f"sqlite:///{template}")
        folder = self._folder / "sqlite"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(template, folder / "bench.db")
        return f"sqlite:///{folder / 'bench.db'}"

    def _database(self, contender: str, prepare: Prepare) -> str:
        """Copy the contender's template; the database of the measurement before is removed."""

        async def fill(url: str) -> None:
            prepare(url)

        server = self._postgres
        while self._databases:
            postgres_servers.wait_for(server.drop_database(self._databases.pop()))
        template = postgres_servers.wait_for(server.template(f"bench_{contender}", fill))
        self._databases.append(postgres_servers.wait_for(server.create_database(template)))
        return server.url(self._databases[-1])


def _pid(server: servers.RedisServer | postgres_servers.PostgresServer) -> int:
    if server.process is None:
        raise RuntimeError("the server is not running")
    return server.process.pid
