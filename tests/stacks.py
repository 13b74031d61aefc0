"""The stack of the tests with processes: the database and the queue that `BENEATH_TEST_STACK` names.

A stack is a database, alone or with a broker beside it: `sqlite` (the default), `postgres`, `sqlite+valkey`, ...
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infra.clock import Clock
from infra.db import Database
from infra.mq import MessageQueue
from tests import postgres_servers, servers

VARIABLE = "BENEATH_TEST_STACK"
DATABASES = ("sqlite", "postgres")
STACKS = tuple(f"{database}{broker}" for database in DATABASES for broker in ("", *(f"+{it}" for it in servers.KINDS)))
"""All stacks."""

TEMPLATE = "beneath_application_template"
"""The migrated PostgreSQL database from which the databases of tests are copied."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The database and queue of one test, passed to each of its processes."""

    db_url: str | None = None
    """None: the application's default."""

    redis_url: str | None = None
    """None: the queue is in the database."""

    namespace: str = "beneath"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of an application on this place, as environment variables."""
        settings = {} if self.db_url is None else {"BENEATH_DB_URL": self.db_url}
        if self.redis_url is not None:
            settings["BENEATH_MQ_DRIVER"] = "redis"
            settings["BENEATH_MQ_REDIS_URL"] = self.redis_url
            settings["BENEATH_MQ_NAMESPACE"] = self.namespace
        return settings

    def build(
        self,
        clock: Clock,
        *,
        lease: float = 10.0,
        timeout: float = 5.0,
        dedupe_window: float = 120.0,
        longest_silence: float = 5.0,
    ) -> tuple[Database, MessageQueue]:
        """Return the database and the queue, not yet open; each driver uses the options that apply to it."""
        assert self.db_url is not None
        db = Database(self.db_url, clock=clock)
        if self.redis_url is None:
            from infra.mq.drivers.sql import SqlQueue

            return db, SqlQueue(
                db, clock=clock, lease=lease, dedupe_window=dedupe_window, longest_silence=longest_silence
            )
        from infra.mq.drivers.redis import RedisQueue

        return db, RedisQueue(
            self.redis_url,
            clock=clock,
            namespace=self.namespace,
            lease=lease,
            timeout=timeout,
            dedupe_window=dedupe_window,
        )


@dataclass(frozen=True, slots=True)
class Stack:
    """A kind of database, and the kind of broker beside it or None."""

    database: str
    broker: str | None = None

    @contextmanager
    def place(
        self,
        folder: Path,
        *,
        template: Path | None = None,
        broker: servers.RedisServer | None = None,
        postgres: postgres_servers.PostgresServer | None = None,
    ) -> Iterator[Place]:
        """Create the database and queue of one test for the block; skip the test if a server is missing.

        With a `template`, a migrated SQLite file, the database is a copy of it; otherwise the application migrates it.
        A PostgreSQL database is always migrated. The session's servers are shared, each test with a database or
        namespace, unless the test passes its own.
        """
        if self.broker is not None and broker is None:
            broker = servers.shared(self.broker)
        with self._database(folder, template, postgres) as db_url:
            yield Place(
                db_url=db_url,
                redis_url=broker.url if broker else None,
                namespace=f"test-{secrets.token_hex(4)}",
            )

    @contextmanager
    def _database(
        self, folder: Path, template: Path | None, server: postgres_servers.PostgresServer | None
    ) -> Iterator[str | None]:
        if self.database == "postgres":
            from tests.world import migrate

            server = server or postgres_servers.shared()
            made = postgres_servers.wait_for(server.template(TEMPLATE, migrate))
            name = postgres_servers.wait_for(server.create_database(made))
            yield server.url(name)
            if server.process is not None:
                postgres_servers.wait_for(server.drop_database(name))
        elif template is not None:
            shutil.copy(template, folder / "beneath.db")
            yield f"sqlite:///{folder / 'beneath.db'}"
        else:
            yield None


def chosen() -> Stack:
    """Return the stack that the environment variable names."""
    name = os.environ.get(VARIABLE, "sqlite")
    if name not in STACKS:
        raise ValueError(f"{VARIABLE} is {name!r}; it is one of {', '.join(STACKS)}")
    database, _, broker = name.partition("+")
    return Stack(database, broker or None)
