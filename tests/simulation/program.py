"""A process of the simulated application: a worker, and publishers that repeat each publish until it is accepted."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from bus import Bus, BusError
from bus.options import BusOptions
from infra.db import Database, DatabaseError
from tests.simulation.events import Alarm, Chime, Event, Note, Postscript, RevisedNote, Step, kind_of
from tests.simulation.journal import SimulatedJournal
from tests.simulation.link import Link
from tests.simulation.listeners import Listeners
from tests.simulation.loop import Process, SimulatedLoop, SimulatedTask
from tests.simulation.sealing import SimulatedClock
from tests.torture.journal import Kind

PUBLISHERS = 2
"""Number of publishers in a process."""

EVENTS = 9
"""Number of events of one key."""

OPTIONS = BusOptions(
    concurrency=4, prefetch=6, grace=3.0, renew_every=0.5, recover_every=0.4, connect_timeout=3.0, max_crashes=1000
)
"""Faults kill processes at random, so that crashes must not make dead letters: `max_crashes` is out of reach."""

MAX_CRASHES = 3
"""The limit in simulations where only handlers end processes."""

PAUSE = 0.8
"""Maximum seconds between two events of a key."""


class RolledBack(Exception):
    """Raised to roll back a transaction on purpose."""


class Program:
    """A process that runs until it is stopped or a handler exits; `worker_error` is set if the worker ended before."""

    def __init__(
        self,
        process: Process,
        link: Link,
        loop: SimulatedLoop,
        journal: SimulatedJournal,
        path: Path | None,
        seed: int,
        *,
        version: int,
        deadly: bool,
    ) -> None:
        self.process = process
        self.link = link
        self.version = version
        """The version of its code: 1 is the old code, 2 the new code."""

        self.deadly = deadly
        """Whether the listener `deadly` exists, whose handler ends the process for one event."""

        self.ready = False
        """Whether `start()` of the bus has returned."""

        self.exiting = False
        """Whether a handler has ended the process."""

        self.stopped_while_exiting = False
        """Whether the process was stopped while a handler's exit ended it; then its threads may not finish."""

        self.all_tasks_cancelled = False
        """Whether all tasks of the process were cancelled, as at the end of `asyncio.run`."""

        self.ending_since = float("inf")
        """The loop's time at which the shutdown began."""

        self.worker_error: BaseException | None = None
        """The error with which the worker ended by itself, if it did."""

        self.unexpected_errors: list[str] = []
        """Errors of publishers that are not documented."""

        self.publishers: list[SimulatedTask] = []
        self._loop = loop
        self._journal = journal
        self._path = path
        self._seed = seed
        self._quiet = False
        self._stopped = asyncio.Event()
        self._clock = SimulatedClock(process, loop)
        self.task = loop.spawn(process, self._run())
        link.cut_off = self._cut_off

    def _cut_off(self) -> None:
        self._journal.write(self.process, "cut off")
        # Threads that were submitted before may start a little later.
        self._loop.call_later(0.1, self._journal.write, self.process, "cut off")

    def stop(self) -> None:
        """Begin a graceful shutdown; a second call ends the shutdown at once."""
        self.stopped_while_exiting = self.stopped_while_exiting or self.exiting
        self.ending_since = min(self.ending_since, self._loop.time())
        self._stopped.set()

    def _note_exit(self) -> None:
        self.exiting = True
        self.ending_since = min(self.ending_since, self._loop.time())

    def is_undisturbed(self, since: float) -> bool:
        """Whether the process has run without a fault and reached the server with every request since a time."""
        process = self.process
        runs = not (process.dead or process.frozen or self.stopping or self.exiting or self.all_tasks_cancelled)
        return self.ready and runs and max(process.thawed_at, self.link.failed_at) < since

    def stop_publishing(self) -> None:
        """Let every publisher end after its current event."""
        self._quiet = True

    async def _run(self) -> None:
        db = (
            Database(f"sqlite:///{self._path}", busy_timeout=2.0, clock=self._clock) if self._path is not None else None
        )
        try:
            await self._live(db)
        finally:
            await self.link.close()
            if db is not None:
                await db.close()

    async def _live(self, db: Database | None) -> None:
        if db is not None:
            await db.open()
        await self.link.open()
        options = replace(OPTIONS, max_crashes=MAX_CRASHES) if self.deadly else OPTIONS
        bus = Bus(self.link, db, clock=self._clock, options=options, random=self.process.random)
        Listeners(
            bus,
            db,
            self._journal,
            self.process,
            self._seed,
            version=self.version,
            deadly=self.deadly,
            on_exit=self._note_exit,
        )
        await bus.start()
        self.ready = True
        self._journal.write(self.process, "ready", text=f"version {self.version}")
        worker = asyncio.create_task(self._work(bus), name="worker")
        worker.add_done_callback(self._note_end)
        self.publishers = [self._publisher(bus, db, number) for number in range(PUBLISHERS)]
        stopped = asyncio.create_task(self._stopped.wait(), name="stop")
        try:
            await asyncio.wait((worker, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopped.set()
            for task in (stopped, *self.publishers):
                task.cancel()
            await asyncio.gather(stopped, *self.publishers, return_exceptions=True)
            worker.cancel()
            await asyncio.wait((worker,))
            await bus.close()

    async def _work(self, bus: Bus) -> None:
        """Run the worker until it is cancelled or a handler exits."""
        try:
            await bus.run()
        except SystemExit:
            if not self.exiting:
                raise RuntimeError("the worker exited, and no handler did") from None

    def _note_end(self, worker: "asyncio.Task[None]") -> None:
        if not self._stopped.is_set() and not (self.exiting and not worker.cancelled() and worker.exception() is None):
            error = asyncio.CancelledError() if worker.cancelled() else worker.exception()
            self.worker_error = error or RuntimeError("the worker returned")

    def _publisher(self, bus: Bus, db: Database | None, number: int) -> SimulatedTask:
        publisher = Publisher(self, bus, db, number)
        task = asyncio.create_task(publisher.run(), name=f"publisher {number}")
        assert isinstance(task, SimulatedTask)
        task.add_done_callback(self._note_unexpected_error)
        return task

    def _note_unexpected_error(self, publisher: "asyncio.Task[None]") -> None:
        if not publisher.cancelled() and (error := publisher.exception()) is not None:
            self.unexpected_errors.append(f"{type(error).__name__}: {error}")

    @property
    def quiet(self) -> bool:
        """Whether publishers must end."""
        return self._quiet or self._stopped.is_set()

    @property
    def stopping(self) -> bool:
        """Whether the process must end."""
        return self._stopped.is_set()

    @property
    def journal(self) -> SimulatedJournal:
        """The journal of the simulation."""
        return self._journal


class Publisher:
    """A publisher of the events of one key after another, which repeats each failed publish under the same id."""

    def __init__(self, program: Program, bus: Bus, db: Database | None, number: int) -> None:
        self._program = program
        self._bus = bus
        self._db = db
        self._name = f"{program.process.pid}.{number}"
        self._random = program.process.random

    async def run(self) -> None:
        """Publish until the process stops publishing."""
        turn = 0
        while not self._program.quiet:
            turn += 1
            await self._one_key(f"{self._name}.{turn}")

    async def _one_key(self, key: str) -> None:
        era = self._program.link.era
        for n in range(1, EVENTS + 1):
            if self._program.quiet or not await self._one_event(Step(key=key, n=n)):
                return
            await self._pause(PAUSE)
            if self._program.link.era != era:
                return  # the server has lost data of this key, so a new key begins

    async def _one_event(self, step: Step) -> bool:
        db = self._db
        publish = partial(self._bus.publish, step, id=_id(step))
        if db is not None and self._random.random() < 0.5:
            publish = partial(self._in_transaction, db, step)
        if not await self._until_accepted(step, publish):
            return False
        if self._random.random() < 0.2:
            await self._alarm(Alarm(key=step.key, n=step.n))
        if self._random.random() < 0.4 and not await self._note(step):
            return False
        if self._random.random() < 0.1:
            await self._attempt(partial(self._bus.publish, Chime(key=step.key, n=step.n)))
        return True

    async def _in_transaction(self, db: Database, step: Step) -> None:
        if self._random.random() < 0.2:
            await self._rolled_back(db, step)
        async with db.transaction() as transaction:
            await transaction.session.execute(
                text("INSERT INTO effect (listener, key, n) VALUES ('published', :key, :n)"),
                {"key": step.key, "n": step.n},
            )
            await self._bus.publish(step, id=_id(step))

    async def _rolled_back(self, db: Database, step: Step) -> None:
        with suppress(RolledBack):
            async with db.transaction():
                await self._bus.publish(Step(key=f"rolled back {step.key}", n=step.n))
                raise RolledBack

    async def _note(self, step: Step) -> bool:
        if self._program.version == 1:
            event: Event = Note(key=step.key, n=step.n)
        elif self._random.random() < 0.5:
            event = RevisedNote(key=step.key, n=step.n, author=self._name)
        else:
            event = Postscript(key=step.key, n=step.n)
        publish = partial(self._bus.publish, event, id=_id(event))
        return await self._until_accepted(event, publish, note=type(event).__name__)

    async def _alarm(self, alarm: Alarm) -> None:
        delay = self._random.uniform(0, 3)
        earliest = self._program.link.time() + delay

        async def publish() -> None:
            await self._bus.publish_delayed(alarm, delay, id=_id(alarm))

        await self._until_accepted(alarm, publish, note=repr(earliest))

    async def _until_accepted(self, event: Event, act: Callable[[], Awaitable[object]], *, note: str = "") -> bool:
        """Repeat a publish until it is accepted; return False shortly before the dedupe window ends."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._program.link.dedupe_window / 2
        self._write("note", event, "tried " + note)
        while not await self._attempt(act):
            await self._pause(0.5)
            if loop.time() > deadline:
                return False
        self._write("accepted", event, note)
        return True

    async def _attempt(self, act: Callable[[], Awaitable[object]]) -> bool:
        try:
            await act()
        except asyncio.CancelledError:
            self._ignore_cancellation()
        except (BusError, DatabaseError, SQLAlchemyError, sqlite3.Error) as error:
            self._program.journal.note(self._program.process, f"publish failed: {type(error).__name__}: {error}")
        else:
            return True
        return False

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.sleep(self._random.uniform(0, seconds))
        except asyncio.CancelledError:
            self._ignore_cancellation()

    def _ignore_cancellation(self) -> None:
        """Continue after a cancellation by a fault; raise it again if the process shuts down."""
        if self._program.stopping:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()

    def _write(self, kind: Kind, event: Event, note: str) -> None:
        self._program.journal.write(
            self._program.process,
            kind,
            listener=kind_of(event),
            key=event.key,
            n=event.n,
            text=note,
        )


def _id(event: Event) -> str:
    return f"{kind_of(event)} {event.key} {event.n}"
