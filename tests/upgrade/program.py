"""A program that runs unchanged on this code and on the previous release: a publisher, a worker, or both.

It uses only what both have: the settings, `dependencies.infra` and the API of `bus`. The first argument is its plan, as
JSON.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

import bus as bus_package
from bus import Bus, PublishIndeterminate, PublishRejected
from dependencies import load_settings
from dependencies.infra import build_bus, build_database, build_queue
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue, QueueUnavailable
from tests.torture.journal import Journal
from tests.upgrade.listeners import EVENTS, Chime, Listeners

LONG = 3600.0
"""The delay in seconds of events that a test cancels."""


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """An event to publish."""

    event: str
    key: str
    n: int
    id: str | None = None
    delay: float | None = None

    @property
    def made(self) -> object:
        return EVENTS[self.event](key=self.key, n=self.n)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a process."""

    journal: str
    process: int
    pause: tuple[str, ...] = ()
    """The listeners to pause at the start."""

    events: tuple[tuple[Publish, ...], ...] = ()
    """The events to publish then: each group in a transaction, a group of one event without."""

    cancel: tuple[str, ...] = ()
    """The ids to cancel after that, each in a transaction."""

    work: bool = False
    """Whether to handle deliveries until SIGTERM."""

    flow: str = ""
    """A suffix for the keys of steps and jobs that the process publishes until SIGTERM; empty for none."""

    watch: str = ""
    """A file to which the process writes the statistics of the queue until SIGTERM; empty for none."""

    knows_new: bool = True
    """Whether the listeners know `NewJob` and `NewStep`."""

    faulty: bool = False
    """Whether handlers fail, defer or hang as the key of an event says."""


@dataclass(frozen=True, slots=True)
class Site:
    """A started bus with its database, queue and journal."""

    bus: Bus
    db: Database
    mq: MessageQueue
    journal: Journal


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Site]:
    """Start the bus for the block, as the settings in the environment say."""
    settings, clock = load_settings(), SystemClock()
    db = build_database(settings, clock)
    mq = build_queue(settings, db, clock)
    bus = build_bus(settings, mq, db, clock)
    journal = Journal(Path(plan.journal), plan.process)
    Listeners(bus, db, journal, faulty=plan.faulty).add(knows_new=plan.knows_new)
    await db.open()
    try:
        await mq.open()
    except QueueUnavailable:
        if not bus.has_outbox:
            raise
    await bus.start()
    yield Site(bus, db, mq, journal)
    await bus.close()
    await mq.close()
    await db.close()
    journal.close()


async def publish(site: Site, group: tuple[Publish, ...]) -> None:
    """Publish events in a transaction, or a single one alone, and record that they were accepted."""
    if len(group) == 1:
        await publish_one(site, group[0])
    else:
        async with site.db.transaction():
            for each in group:
                await publish_one(site, each)
    for each in group:
        site.journal.write("accepted", key=each.key, n=each.n, text=each.event)


async def publish_one(site: Site, it: Publish) -> None:
    """Publish one event."""
    if it.delay is not None:
        await site.bus.publish_delayed(it.made, it.delay, id=it.id)
    else:
        await site.bus.publish(it.made, id=it.id)


async def flow(site: Site, suffix: str, stopped: asyncio.Event) -> None:
    """Publish steps and jobs until SIGTERM: in transactions and alone, with and without an id, and delayed."""
    n = 0
    while not stopped.is_set():
        n += 1
        step = Publish(event="Step", key=f"step-{suffix}", n=n)
        job = Publish(event="Job", key=f"job-{suffix}", n=n)
        named = Publish(event="Job", key=f"named-{suffix}", n=n, id=f"named-{suffix}-{n}")
        delayed = Publish(event="Job", key=f"delayed-{suffix}", n=n, delay=0.2)
        await publish(site, (step, Publish(event="Job", key=f"both-{suffix}", n=n)))
        await asyncio.gather(*(publish_until_accepted(site, each) for each in (job, named, delayed)))
        await site.bus.publish(Chime(key=suffix, n=n))
        await asyncio.sleep(0.02)


async def publish_until_accepted(site: Site, it: Publish) -> None:
    """Publish one event, repeated by its id after an indeterminate publish."""
    while True:
        try:
            await publish(site, (it,))
        except PublishIndeterminate as error:
            it = msgspec.structs.replace(it, id=error.id)
        except PublishRejected:
            await asyncio.sleep(0.02)
        else:
            return


async def cancel(site: Site, message_id: str) -> None:
    """Cancel an event in a transaction, and record the result."""
    async with site.db.transaction():
        cancelled = await site.bus.cancel(message_id)
    site.journal.write("note", id=message_id, text=f"cancel {cancelled}")


async def watch(site: Site, path: Path, stopped: asyncio.Event) -> None:
    """Write the statistics of queue and outbox until SIGTERM, by listener."""
    while not stopped.is_set():
        waiting, _ = await site.bus.outbox_backlog()
        rows = {"outbox": {"ready": waiting}, **{each.name: each for each in await site.mq.stats()}}
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(rows, enc_hook=sorted))
        new.replace(path)
        await asyncio.sleep(0.1)


async def run(plan: Plan) -> None:
    """Publish, cancel, then work and publish until SIGTERM as the plan says."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with opened(plan) as site:
        for name in plan.pause:
            await site.mq.pause(name)
        for group in plan.events:
            await publish(site, group)
        for message_id in plan.cancel:
            await cancel(site, message_id)
        site.journal.write("ready", text=str(Path(bus_package.__file__).parents[1]))
        tasks: list[Coroutine[None, None, None]] = []
        if plan.work:
            tasks.append(work(site, stopped))
        if plan.flow:
            tasks.append(flow(site, plan.flow, stopped))
        if plan.watch:
            tasks.append(watch(site, Path(plan.watch), stopped))
        await asyncio.gather(*tasks)


async def work(site: Site, stopped: asyncio.Event) -> None:
    """Handle deliveries until SIGTERM."""
    working = asyncio.create_task(site.bus.run())
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait([stopping, working], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    working.cancel()
    await asyncio.wait([working])
    if not working.cancelled():
        working.result()


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Plan)))
