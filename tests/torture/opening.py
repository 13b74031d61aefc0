"""What every program of the torture tests opens: a database, a queue, a bus, and the journal."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bus import Bus, BusOptions
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue, QueueUnavailable
from tests.stacks import Place
from tests.torture.journal import Journal
from tests.torture.listeners import Listeners
from tests.torture.stepping import SteppedClock


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a program is told when it starts."""

    place: Place
    journal: str
    listeners: tuple[str, ...] = ()
    """Which of `Listeners` this program has."""

    options: dict[str, float] = {}
    """Those of `BusOptions` that differ from the defaults."""

    queue: dict[str, float] = {}
    """Those of `Place.build` that differ from the defaults."""

    log_level: Literal["warning", "error"] = "error"
    clock: str = ""
    """A file with how far its wall clock is off, see `stepping`; without one it is the machine's."""

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
    mq: MessageQueue
    journal: Journal
    gate: Path


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Opened]:
    """Inside the block the bus has started."""
    clock = SteppedClock(Path(plan.clock)) if plan.clock else SystemClock()
    db, mq = plan.place.build(clock, **plan.queue)
    bus = Bus(mq, db, clock=clock, options=msgspec.convert(plan.options, BusOptions))
    journal = Journal(Path(plan.journal))
    Listeners(bus, db, journal, Path(plan.gate)).add(plan.listeners)
    try:
        async with open_both(db, mq, or_later=bus.has_outbox):
            await bus.start()
            yield Opened(bus, db, mq, journal, Path(plan.gate))
            await bus.close()
    finally:
        journal.close()


@asynccontextmanager
async def open_both(db: Database, mq: MessageQueue, *, or_later: bool = False) -> AsyncIterator[None]:
    """Inside the block the database and the queue are open; with `or_later` the bus opens a queue that is away now."""
    await db.open()
    try:
        try:
            await mq.open()
        except QueueUnavailable:
            if not or_later:
                raise
        try:
            yield
        finally:
            await mq.close()
    finally:
        await db.close()
