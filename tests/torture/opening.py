"""What every program of the torture tests opens: one SQLite file, a queue in it, a bus, and the journal."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bus import Bus, BusOptions
from infra.clock import SystemClock
from infra.db import Database
from infra.mq.drivers.sql import SqlQueue
from tests.torture.journal import Journal
from tests.torture.listeners import Listeners


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a program is told when it starts."""

    database: str
    journal: str
    listeners: tuple[str, ...] = ()
    """Which of `Listeners` this program has."""

    options: dict[str, float] = {}
    """Those of `BusOptions` that differ from the defaults."""

    longest_silence: float = 5.0
    gate: str = ""
    """A file that handlers look for."""

    work: bool = True
    """Whether to run the worker, or only to be there, as a server would."""

    arguments: dict[str, int | float | str | list[str]] = {}
    """What else a program needs to know."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A started bus, and what it stands on."""

    bus: Bus
    db: Database
    mq: SqlQueue
    journal: Journal


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Opened]:
    """Inside the block the bus has started."""
    clock = SystemClock()
    db = Database(f"sqlite:///{plan.database}", clock=clock)
    mq = SqlQueue(db, clock=clock, longest_silence=plan.longest_silence)
    bus = Bus(mq, db, clock=clock, options=msgspec.convert(plan.options, BusOptions))
    journal = Journal(Path(plan.journal))
    Listeners(bus, db, journal, Path(plan.gate)).add(plan.listeners)
    await db.open()
    try:
        await mq.open()
        try:
            await bus.start()
            yield Opened(bus, db, mq, journal)
            await bus.close()
        finally:
            await mq.close()
    finally:
        await db.close()
        journal.close()
