"""One simulation: some processes over one queue, faults for a while, then calm, and what was promised.

The seed also draws which versions of the code run, and whether the server forgets everything on the way.
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
"""Seconds; a process may be frozen for longer than the first. Where processes exit again and again, an outbox may be
left for longer than that, too.
"""

TROUBLE = (2.0, 7.0)
"""Seconds for which things go wrong, at least and at most."""

FLUSHED_AFTER = (0.5, 3.0)
"""Seconds after which the server forgets everything, at least and at most, where it does."""

TROUBLE_AFTER_FLUSH = (5.0, 9.0)
"""Seconds for which things go wrong from then on: what is published once all is declared again must hold."""

DECLARED_WITHIN = REDECLARE_EVERY + REGISTRY_TTL + 1.0
"""Seconds after which a process that nothing has disturbed must have declared its listeners again."""

PATIENCE = 120.0
"""Seconds after which all that was accepted must have come to its end."""


@dataclass(slots=True)
class Result:
    """How a simulation ended."""

    seed: int
    broken: list[str]
    """A line for each promise that was not kept."""

    digest: str
    trace: list[str] = field(repr=False)
    steps: int
    events: int
    runs: int


class Simulation:
    """What one seed makes."""

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
        """What a new process's version is drawn from."""

        self._deadly = self.random.random() < 0.15
        """Whether one event kills its process each time, and no fault does."""

        self._dedupe_window = DEDUPE_WINDOWS[1] if self._deadly else self.random.choice(DEDUPE_WINDOWS)
        self._flushes = not self._deadly and self.random.random() < 0.25
        self._undeclared: list[str] = []
        self._restored = 0
        """The line of the journal from which on nothing that was forgotten matters."""

        self._server = Server(
            SimulatedClock(self.loop.world, self.loop),
            lease=LEASE * MARGIN,
            dedupe_window=self._dedupe_window,
        )
        self._server.on_retired = self._note_retirement

    def run(self) -> Result:
        """Run it to its end."""
        record_logs(self._log)
        self.loop.set_exception_handler(self._unhandled)
        asyncio.set_event_loop(self.loop)
        gc.disable()  # what is collected when depends on what ran before
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
        if program.hurried or program.link.failed_at >= program.ending_since:
            self.journal.write(process, "cut off")
        if self.journal.unfinished(process.pid):
            self.journal.write(process, "pausing")  # handlers that did not end were left behind
        self.loop.kill(process)

    def replace(self, slot: int, program: Program) -> None:
        if self.slots[slot] is program:
            self.slots[slot] = self._start()

    def _run(self) -> list[str]:
        main = self.loop.spawn(self.loop.world, self._main())
        try:
            stranded = self.loop.run_until_complete(main)
        except Stuck as stuck:
            return [f"stuck: {stuck}"]
        return [
            *stranded,
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
        operating = asyncio.create_task(self._operate(self.random.uniform(*TROUBLE)))
        flushing: asyncio.Task[None] | None = None
        if self._flushes:
            await faults.strike(self.random.uniform(*FLUSHED_AFTER))
            flushing = asyncio.create_task(self._flush())
            if self.random.random() < 0.5:
                await asyncio.sleep(DECLARED_WITHIN + 0.1)  # processes that nothing disturbs must declare in time
            await faults.strike(self.random.uniform(*TROUBLE_AFTER_FLUSH))
        else:
            await faults.strike(self.random.uniform(*TROUBLE))
        await operating
        await self._calm_down()
        stranded = await self._wait_for_the_end()
        if flushing is not None:
            flushing.cancel()  # it has ended, or the promise is broken and stands in `stranded`
        stranded += await self._retire_for_good()
        self._dead = await self._server.queue.dead_letters(limit=10_000)
        for program in self.slots:
            program.stop()
        await asyncio.wait([program.task for program in self.slots], timeout=60)
        for program in self.slots:
            if not program.task.done():
                stranded.append(f"process {program.process.pid} does not end")
            self.loop.kill(program.process)
        return stranded

    async def _calm_down(self) -> None:
        """Let publishers end, and deploy the new code everywhere: what was parked for it waits for that."""
        self._versions = (2,)
        for program in self.slots:
            program.hush()
        for slot, program in enumerate(self.slots):
            if program.version == 1:
                program.stop()
                await asyncio.wait((program.task,), timeout=60)
                if not program.collapsing:
                    self.finish(program)
                self.replace(slot, program)
            self.slots[slot].hush()

    async def _operate(self, seconds: float) -> None:
        process = Process(0, self.random)
        link = self._link(process)
        await Operator(link, process, self.journal, self.random).act(seconds)

    async def _flush(self) -> None:
        """Let the server forget everything, and wait until every process has declared its listeners again."""
        living = [it for it in self.slots if not it.process.dead]
        self.journal.note(self.loop.world, "fault flush strikes the server")
        await self._server.flush({it for program in living for it in program.link.facts if it[0] != LEGACY})
        for program in living:
            if program.ready:
                self.loop.spawn(self.loop.world, self._expect_declaration(program, self.loop.time()))
        self._restored = len(self.journal.lines) + 1_000_000  # until then nothing that is published is safe
        await self._server.complete.wait()
        await asyncio.sleep(self._server.known_since + REGISTRY_TTL - self.loop.time())
        self.journal.note(self.loop.world, "all is declared again")
        self._restored = len(self.journal.lines)

    async def _expect_declaration(self, program: Program, flushed_at: float) -> None:
        await asyncio.sleep(DECLARED_WITHIN)
        if program.is_undisturbed(flushed_at) and program.link.declared_in != self._server.era:
            self._undeclared.append(f"process {program.process.pid} did not declare its listeners again")

    async def _retire_for_good(self) -> list[str]:
        """Remove the listener that the new code does not have; what it left must become dead letters."""
        kept = {it.name: it for it in await self._server.stats()}
        if LEGACY not in kept:
            return []
        found = kept[LEGACY]
        left = found.ready + found.retrying + found.parked + found.in_flight
        retired = await self._server.queue.retire(LEGACY, backlog="dead")
        return [] if retired == left else [f"retired {retired} deliveries instead of {left}: {found}"]

    def _note_retirement(self, name: str) -> None:
        self.journal.write(self.loop.world, "note", listener="retired", text=name)

    async def _wait_for_the_end(self) -> list[str]:
        end = self.loop.time() + PATIENCE
        waits: list[str] = []
        calm = 0
        while self.loop.time() < end:
            await asyncio.sleep(1)
            waits = await self._waiting()
            calm = calm + 1 if not waits else 0
            if calm == 3:
                return []
            for slot, program in enumerate(self.slots):
                if program.task.done() and not program.collapsing:
                    self.finish(program)
                    self.replace(slot, program)
                self.slots[slot].hush()
        return waits

    async def _waiting(self) -> list[str]:
        waits = [
            f"stranded: {each}"
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
            waits.append(f"stranded: {rows[0][0]} rows in the outbox")
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

        self.journal.note(PROCESS.get(self.loop.world), "log " + line)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._log(f"unhandled {context.get('message')} {context.get('exception')!r}")


class _Callback:
    """Notes how a program ended."""

    def __init__(self, program: Program, journal: SimulatedJournal) -> None:
        self._program = program
        self._journal = journal

    def __call__(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        self._journal.note(self._program.process, f"ended {type(error).__name__}: {error}" if error else "ended")
