"""One simulation: several processes on one queue run with faults, then without, and the invariants are checked.

The seed also decides which versions of the code run, and whether the server loses all data meanwhile.
"""

import asyncio
import gc
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bus.declaration import REDECLARE_EVERY
from infra.mq import REGISTRY_TTL
from tests.simulation import invariants
from tests.simulation.faults import Faults
from tests.simulation.journal import SimulatedJournal
from tests.simulation.link import MARGIN, Link
from tests.simulation.listeners import LEGACY
from tests.simulation.loop import Process, SimulatedLoop, Stuck
from tests.simulation.operating import Operator
from tests.simulation.program import Program
from tests.simulation.sealing import SimulatedClock, record_logs
from tests.simulation.server import Server

LEASE = 2.0
DEDUPE_WINDOWS = (8.0, 120.0)
"""Seconds. A process may be frozen for longer than the first value, and outbox rows may wait for longer while
processes exit repeatedly.
"""

FAULT_SECONDS = (2.0, 7.0)
"""Minimum and maximum seconds of fault injection."""

FLUSHED_AFTER = (0.5, 3.0)
"""Minimum and maximum seconds until the server loses all data, in simulations with a flush."""

FAULT_SECONDS_AFTER_FLUSH = (5.0, 9.0)
"""Minimum and maximum seconds of fault injection after a flush; events published after all declarations must hold."""

DECLARED_WITHIN = REDECLARE_EVERY + REGISTRY_TTL + 1.0
"""Seconds after a flush within which an undisturbed process must have declared its listeners again."""

COMPLETED_WITHIN = 120.0
"""Seconds after the last fault within which all accepted events must be handled or dead letters."""


@dataclass(slots=True)
class Result:
    """The result of a simulation."""

    seed: int
    broken: list[str]
    """A line for each violated invariant."""

    digest: str
    trace: list[str] = field(repr=False)
    steps: int
    events: int
    runs: int


class Simulation:
    """The simulation of one seed."""

    def __init__(self, seed: int, path: Path | None) -> None:
        self.seed = seed
        self.random = Random(f"simulation {seed}")
        self.loop = SimulatedLoop(self.random)
        self.journal = SimulatedJournal(self.loop, path.parent if path else None)
        self.slots: list[Program] = []
        self.programs: list[Program] = []
        self._path = path
        self._pids = 0
        self._versions = self.random.choice([(2,), (1, 2), (1, 2), (1, 1, 2)])
        """The versions from which that of a new process is drawn."""

        self._deadly = self.random.random() < 0.15
        """Whether one event always ends its process, and no fault kills processes."""

        self._dedupe_window = DEDUPE_WINDOWS[1] if self._deadly else self.random.choice(DEDUPE_WINDOWS)
        self._flushes = not self._deadly and self.random.random() < 0.25
        self._undeclared: list[str] = []
        self._restored = 0
        """The line of the journal at which all declarations lost in a flush had been repeated."""

        self._server = Server(
            SimulatedClock(self.loop.environment, self.loop),
            lease=LEASE * MARGIN,
            dedupe_window=self._dedupe_window,
        )
        self._server.on_retired = self._note_retirement

    def run(self) -> Result:
        """Run the simulation, and return its result."""
        record_logs(self._log)
        self.loop.set_exception_handler(self._unhandled)
        asyncio.set_event_loop(self.loop)
        gc.disable()  # the time of a collection depends on earlier simulations
        try:
            broken = self._run()
        finally:
            self.loop.close()
            asyncio.set_event_loop(None)
            gc.enable()
        events = sum(line.kind == "accepted" for line in self.journal.lines)
        runs = sum(line.kind == "start" for line in self.journal.lines)
        return Result(self.seed, broken, self.journal.digest(), self.journal.trace, self.loop.steps, events, runs)

    def finish(self, program: Program) -> None:
        process = program.process
        if program.stopped_while_exiting or program.link.failed_at >= program.ending_since:
            self.journal.write(process, "cut off")
        if self.journal.unfinished(process.pid):
            self.journal.write(process, "pausing")  # some handlers did not end
        self.loop.kill(process)

    def replace(self, slot: int, program: Program) -> None:
        if self.slots[slot] is program:
            self.slots[slot] = self._start()

    def _run(self) -> list[str]:
        main = self.loop.spawn(self.loop.environment, self._main())
        try:
            unfinished = self.loop.run_until_complete(main)
        except Stuck as stuck:
            return [f"stuck: {stuck}"]
        return [
            *unfinished,
            *self._undeclared,
            *invariants.check(
                self.journal.lines,
                self.programs,
                self._dead,
                self._rows(),
                has_database=self._path is not None,
                restored=self._restored,
            ),
        ]

    async def _main(self) -> list[str]:
        await self._server.open()
        for _ in range(self.random.randrange(1, 4)):
            self.slots.append(self._start())
        faults = Faults(self, self.random, LEASE, mild=self._deadly)
        self.loop.on_step = faults.on_step
        self.loop.on_exit = faults.on_exit
        operating = asyncio.create_task(self._operate(self.random.uniform(*FAULT_SECONDS)))
        flushing: asyncio.Task[None] | None = None
        if self._flushes:
            await faults.inject(self.random.uniform(*FLUSHED_AFTER))
            flushing = asyncio.create_task(self._flush())
            if self.random.random() < 0.5:
                await asyncio.sleep(DECLARED_WITHIN + 0.1)  # undisturbed processes must declare in time
            await faults.inject(self.random.uniform(*FAULT_SECONDS_AFTER_FLUSH))
        else:
            await faults.inject(self.random.uniform(*FAULT_SECONDS))
        await operating
        await self._deploy_new_code()
        unfinished = await self._wait_for_the_end()
        if flushing is not None:
            flushing.cancel()  # it has ended, or the violation is in `unfinished`
        unfinished += await self._retire_for_good()
        self._dead = await self._server.queue.dead_letters(limit=10_000)
        for program in self.slots:
            program.stop()
        await asyncio.wait([program.task for program in self.slots], timeout=60)
        for program in self.slots:
            if not program.task.done():
                unfinished.append(f"process {program.process.pid} does not end")
            self.loop.kill(program.process)
        return unfinished

    async def _deploy_new_code(self) -> None:
        """Stop publishers, and replace all processes by the new code, which handles the parked deliveries."""
        self._versions = (2,)
        for program in self.slots:
            program.stop_publishing()
        for slot, program in enumerate(self.slots):
            if program.version == 1:
                program.stop()
                await asyncio.wait((program.task,), timeout=60)
                if not program.all_tasks_cancelled:
                    self.finish(program)
                self.replace(slot, program)
            self.slots[slot].stop_publishing()

    async def _operate(self, seconds: float) -> None:
        process = Process(0, self.random)
        link = self._link(process)
        await Operator(link, process, self.journal, self.random).act(seconds)

    async def _flush(self) -> None:
        """Let the server lose all data, and wait until every process has declared its listeners again."""
        living = [it for it in self.slots if not it.process.dead]
        self.journal.note(self.loop.environment, "fault flush in the server")
        await self._server.flush({it for program in living for it in program.link.declared_events if it[0] != LEGACY})
        for program in living:
            if program.ready:
                self.loop.spawn(self.loop.environment, self._expect_declaration(program, self.loop.time()))
        self._restored = len(self.journal.lines) + 1_000_000  # until the end of this wait published events may be lost
        await self._server.complete.wait()
        await asyncio.sleep(self._server.known_since + REGISTRY_TTL - self.loop.time())
        self.journal.note(self.loop.environment, "all is declared again")
        self._restored = len(self.journal.lines)

    async def _expect_declaration(self, program: Program, flushed_at: float) -> None:
        await asyncio.sleep(DECLARED_WITHIN)
        if program.is_undisturbed(flushed_at) and program.link.declared_in != self._server.era:
            self._undeclared.append(f"process {program.process.pid} did not declare its listeners again")

    async def _retire_for_good(self) -> list[str]:
        """Retire the listener that the new code does not have; its backlog must become dead letters."""
        kept = {it.name: it for it in await self._server.stats()}
        if LEGACY not in kept:
            return []
        found = kept[LEGACY]
        left = found.ready + found.retrying + found.parked + found.in_flight
        retired = await self._server.queue.retire(LEGACY, backlog="dead")
        return [] if retired == left else [f"retired {retired} deliveries instead of {left}: {found}"]

    def _note_retirement(self, name: str) -> None:
        self.journal.write(self.loop.environment, "note", listener="retired", text=name)

    async def _wait_for_the_end(self) -> list[str]:
        end = self.loop.time() + COMPLETED_WITHIN
        waits: list[str] = []
        idle_polls = 0
        while self.loop.time() < end:
            await asyncio.sleep(1)
            waits = await self._waiting()
            idle_polls = idle_polls + 1 if not waits else 0
            if idle_polls == 3:
                return []
            for slot, program in enumerate(self.slots):
                if program.task.done() and not program.all_tasks_cancelled:
                    self.finish(program)
                    self.replace(slot, program)
                self.slots[slot].stop_publishing()
        return waits

    async def _waiting(self) -> list[str]:
        waits = [
            f"unfinished: {each}"
            for each in await self._server.stats()
            if (each.ready or each.retrying or each.scheduled or each.in_flight or each.parked or each.blocked)
            and each.name != LEGACY
        ]
        waits += [f"not declared again: {each}" for each in self._server.lost]
        waits += [
            f"process {program.process.pid} still publishes"
            for program in self.slots
            if any(not task.done() for task in program.publishers)
        ]
        if self._path is not None and (rows := self._query("SELECT count(*) FROM beneath_outbox")) != [(0,)]:
            waits.append(f"unfinished: {rows[0][0]} rows in the outbox")
        return waits

    def _start(self) -> Program:
        self._pids += 1
        process = Process(self._pids, self.random, monotonic_offset=1000.0 * self._pids)
        program = Program(
            process,
            self._link(process),
            self.loop,
            self.journal,
            self._path,
            self.seed,
            version=self.random.choice(self._versions),
            deadly=self._deadly,
        )
        self.journal.write(process, "note", listener="started", text=f"version {program.version}")
        program.task.add_done_callback(self._note_failure(program))
        self.programs.append(program)
        return program

    def _link(self, process: Process) -> Link:
        return Link(
            process,
            self._server,
            self.loop,
            lease=LEASE,
            dedupe_window=self._dedupe_window,
            durable=self._path is not None or self._flushes,
        )

    def _note_failure(self, program: Program) -> "_Callback":
        return _Callback(program, self.journal)

    def _rows(self) -> list[tuple[str, str, int]]:
        return self._query("SELECT listener, key, n FROM effect") if self._path is not None else []

    def _query(self, query: str) -> list[tuple]:  # type: ignore[type-arg]
        connection = sqlite3.connect(str(self._path))
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def _log(self, line: str) -> None:
        from tests.simulation.loop import PROCESS

        self.journal.note(PROCESS.get(self.loop.environment), "log " + line)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._log(f"unhandled {context.get('message')} {context.get('exception')!r}")


class _Callback:
    """A done callback that records how a process ended."""

    def __init__(self, program: Program, journal: SimulatedJournal) -> None:
        self._program = program
        self._journal = journal

    def __call__(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        self._journal.note(self._program.process, f"ended {type(error).__name__}: {error}" if error else "ended")
