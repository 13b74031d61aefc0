"""All services on a real database and the bus kit, for tests of services and of HTTP."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from dependency_injector.providers import Object

from bus.testing import BusKit
from dependencies import AllServices, Settings
from dependencies.infra import Infra
from dependencies.migrations import HISTORIES
from dependencies.services import Services
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mail import Mail


@dataclass(slots=True)
class RecordingMailer:
    """A mailer that records its mails, and fails as often as a test says."""

    sent: list[Mail] = field(default_factory=list)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    """Errors by the subject of a mail: `send` raises one after another until none is left."""

    async def send(self, message: Mail) -> None:
        if failures := self.failures.get(message.subject):
            raise failures.pop(0)
        self.sent.append(message)

    def to(self, email: str) -> list[Mail]:
        """Return the mails to one address, oldest first."""
        return [message for message in self.sent if message.to == email]


@dataclass(frozen=True, slots=True, kw_only=True)
class World(AllServices):
    """All services with a started bus kit."""

    kit: BusKit
    db: Database
    mail: RecordingMailer


async def migrated_file(path: Path) -> Path:
    """Create a migrated database file."""
    await migrate(f"sqlite:///{path}")
    return path


async def migrate(url: str) -> None:
    """Apply all migrations to the database."""
    db = Database(url)
    await db.open()
    try:
        await upgrade(db, HISTORIES)
    finally:
        await db.close()


@asynccontextmanager
async def world(template: Path, path: Path, *, busy_timeout: float = 10.0) -> AsyncIterator[World]:
    """Run the services on a copy of the database file `template`, at `path`."""
    shutil.copy(template, path)
    async with world_at(f"sqlite:///{path}", busy_timeout=busy_timeout) as built:
        yield built


@asynccontextmanager
async def world_at(url: str, *, busy_timeout: float = 10.0) -> AsyncIterator[World]:
    """Run the services on the database at `url`, which has all tables."""
    db = Database(url, busy_timeout=busy_timeout)
    await db.open()
    try:
        async with BusKit(db=db) as kit:
            built = build(kit, db)
            await kit.start()
            yield built
    finally:
        await db.close()


def build(kit: BusKit, db: Database) -> World:
    """Construct all services, as `dependencies/services.py` lists them, on a kit that is not started yet."""
    mail = RecordingMailer()
    infra = Infra(Object(Settings()))
    infra.bus.override(Object(kit.bus))
    infra.db.override(Object(db))
    infra.clock.override(Object(kit.clock))
    infra.mailer.override(Object(mail))
    services = Services(infra).all()
    by_name = {each.name: getattr(services, each.name) for each in fields(services)}
    return World(kit=kit, db=db, mail=mail, **by_name)
