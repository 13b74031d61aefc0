"""One simulation: some processes over one queue, faults for a while, then calm, and what was promised."""

import asyncio
import gc
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from infra.mq.drivers.memory import MemoryQueue
from tests.simulation import invariants
from tests.simulation.faults import Faults
from tests.simulation.journal import SimulatedJournal
from tests.simulation.link import MARGIN, Link
from tests.simulation.loop import Process, SimulatedLoop, Stuck
from tests.simulation.program import Program
from tests.simulation.sealing import SimulatedClock, record_logs

LEASE = 2.0
DEDUPE_WINDOWS = (8.0, 120.0)
"""Seconds; a process may be frozen for longer than the first."""

TROUBLE = (2.0, 7.0)
"""Seconds for which things go wrong, at least and at most."""

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
        self._dedupe_window = self.random.choice(DEDUPE_WINDOWS)
        self._server = MemoryQueue(
            clock=SimulatedClock(self.loop.world, self.loop),
            lease=LEASE * MARGIN,
            dedupe_window=self._dedupe_window,
        )

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

    def restart(self, slot: int) -> None:
        program = self._start()
        self.slots[slot] = program

    def _run(self) -> list[str]:
        main = self.loop.spawn(self.loop.world, self._main())
        try:
            stranded = self.loop.run_until_complete(main)
        except Stuck as stuck:
            return [f"stuck: {stuck}"]
        rows = self._rows()
        if not any(line.kind == "accepted" for line in self.journal.lines):
            stranded.append("nothing was ever accepted")
        return [*stranded, *invariants.check(self.journal.lines, self.programs, self._dead, rows)]

    async def _main(self) -> list[str]:
        await self._server.open()
        for _ in range(self.random.randrange(1, 4)):
            self.slots.append(self._start())
        faults = Faults(self, self.random, LEASE)
        self.loop.on_step = faults.on_step
        await faults.strike(self.random.uniform(*TROUBLE))
        for program in self.slots:
            program.hush()
        stranded = await self._wait_for_the_end()
        self._dead = await self._server.dead_letters(limit=10_000)
        for program in self.slots:
            program.stop()
        await asyncio.wait([program.task for program in self.slots], timeout=60)
        for program in self.slots:
            if not program.task.done():
                stranded.append(f"process {program.process.pid} does not end")
            self.loop.kill(program.process)
        return stranded

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
                if program.task.done():
                    self.restart(slot)
                    self.slots[slot].hush()
        return waits

    async def _waiting(self) -> list[str]:
        waits = [
            f"stranded: {each}"
            for each in await self._server.stats()
            if each.ready or each.retrying or each.scheduled or each.in_flight or each.parked or each.blocked
        ]
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
        link = Link(
            process,
            self._server,
            self.loop,
            lease=LEASE,
            dedupe_window=self._dedupe_window,
            durable=self._path is not None,
        )
        program = Program(process, link, self.loop, self.journal, self._path, self.seed)
        program.task.add_done_callback(self._note_failure(program))
        self.programs.append(program)
        return program

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
