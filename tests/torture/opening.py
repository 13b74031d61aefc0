"""The setup of every program of the torture tests: database, queue, bus and journal."""

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
    """The configuration of a program."""

    place: Place
    journal: str
    process: int = 0
    """The number of the process that runs the program."""

    listeners: tuple[str, ...] = ()
    """The names of the program's `Listeners`."""

    options: dict[str, float] = {}
    """Changes to the defaults of `BusOptions`."""

    queue: dict[str, float] = {}
    """Changes to the defaults of `Place.build`."""

    log_level: Literal["warning", "error"] = "error"
    clock: str = ""
    """A file with the offset of its wall clock, see `stepping`; "" for the machine's clock."""

    gate: str = ""
    """A file whose existence opens the gate of handlers."""

    work: bool = True
    """Whether to run the worker; False for a process that only publishes."""

    arguments: dict[str, int | float | str | list[str]] = {}
    """Further arguments of the program."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A started bus with its database, queue and journal."""

    bus: Bus
    db: Database
    mq: MessageQueue
    journal: Journal
    gate: Path


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Opened]:
    """Start the bus for the block."""
    clock = SteppedClock(Path(plan.clock)) if plan.clock else SystemClock()
    db, mq = plan.place.build(clock, **plan.queue)
    bus = Bus(mq, db, clock=clock, options=msgspec.convert(plan.options, BusOptions))
    journal = Journal(Path(plan.journal), plan.process)
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
    """Open the database and the queue for the block; with `or_later` the bus opens an unavailable queue later."""
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
