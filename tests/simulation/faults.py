"""Fault injection: which faults a simulation injects, when, and into which process."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

from tests.simulation.journal import SimulatedJournal
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.program import Program

EVERY = 0.8
"""Average seconds between two faults."""


class ProcessGroup(Protocol):
    """The processes into which faults are injected."""

    loop: SimulatedLoop
    journal: SimulatedJournal
    slots: list[Program]

    def finish(self, program: Program) -> None:
        """Kill the remaining tasks of a process that has ended."""
        ...

    def replace(self, slot: int, program: Program) -> None:
        """Start a new process in the slot of a process that has ended, unless the slot has a new one already."""
        ...


class Faults:
    """Injects random faults; each fault repairs its consequences itself.

    `mild` faults neither kill a process nor cost it its lease: then only handlers end processes.
    """

    def __init__(self, group: ProcessGroup, random: Random, lease: float, *, mild: bool) -> None:
        self._group = group
        self._random = random
        self._lease = lease
        self._busy: set[int] = set()
        self._until_cancellation = random.randrange(50, 2000)
        possible: list[Callable[[int], Awaitable[None]]] = [self._stop, self._step_clock, self._break_the_disk]
        if not mild:
            possible += [self._kill, self._freeze, self._end_all_tasks, self._cut_off, self._storm]
        self._all = random.sample(possible, random.randrange(2, len(possible) + 1))
        self._cancelling = random.random() < 0.7
        self._injected: list[asyncio.Task[None]] = []

    async def inject(self, seconds: float) -> None:
        """Inject faults for `seconds`, and return when all of them are repaired."""
        loop = self._group.loop
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(self._random.expovariate(1 / EVERY))
            self._replace_ended()
            slot = self._random.randrange(len(self._group.slots))
            if slot in self._busy:
                continue
            self._busy.add(slot)
            fault = self._random.choice(self._all)
            self._injected.append(asyncio.create_task(self._inject(fault, slot)))
        self._cancelling = False
        await asyncio.gather(*self._injected)

    async def _inject(self, fault: Callable[[int], Awaitable[None]], slot: int) -> None:
        self._note(f"fault {fault.__name__} in process {self._group.slots[slot].process.pid}")
        try:
            await fault(slot)
            self._replace_if_ended(slot)
        finally:
            self._busy.discard(slot)

    def _replace_ended(self) -> None:
        """Replace processes that ended by themselves: a handler exited, or the process could not start."""
        for slot in range(len(self._group.slots)):
            if slot not in self._busy:
                self._replace_if_ended(slot)

    def _replace_if_ended(self, slot: int) -> None:
        program = self._group.slots[slot]
        if program.task.done() and not program.all_tasks_cancelled:
            self._group.finish(program)
            self._group.replace(slot, program)

    def on_step(self) -> None:
        """Cancel a random publisher from time to time, at its current await."""
        self._until_cancellation -= 1
        if self._until_cancellation > 0 or not self._cancelling:
            return
        self._until_cancellation = self._random.randrange(20, 1500)
        alive = [
            task
            for program in self._group.slots
            if not program.process.dead and not program.stopping
            for task in program.publishers
            if not task.done()
        ]
        if alive:
            task = self._random.choice(alive)
            self._note(f"fault cancel in {task.get_name()} of process {task.process.pid}")
            task.cancel()

    def on_exit(self, process: Process) -> None:
        """End a process whose event loop a SystemExit has ended, as `asyncio.run` does."""
        for slot, program in enumerate(self._group.slots):
            if program.process is process and not process.dead and not program.all_tasks_cancelled:
                self._note(f"exit ends the loop of {process.pid}")
                self._group.loop.spawn(self._group.loop.environment, self._after_all_tasks(slot, program))

    async def _kill(self, slot: int) -> None:
        program = self._group.slots[slot]
        self._group.journal.write(program.process, "killing")
        self._group.loop.kill(program.process)
        await self._sometime(2)
        self._group.replace(slot, program)

    async def _freeze(self, slot: int) -> None:
        process = self._group.slots[slot].process
        self._group.journal.write(process, "pausing")
        process.frozen, process.thawed_at = True, self._group.loop.time()
        await self._sometime(self._random.choice([1, 2.5, 2.5, 8]) * self._lease)
        self._group.loop.thaw(process)
        await asyncio.sleep(1)  # until the worker knows whether its lease is lost
        self._group.journal.write(process, "cut off")

    async def _stop(self, slot: int) -> None:
        program = self._group.slots[slot]
        program.stop()
        await asyncio.wait((program.task,), timeout=60)
        if not program.all_tasks_cancelled:
            self._group.finish(program)
            await self._sometime(1)
            self._group.replace(slot, program)

    async def _end_all_tasks(self, slot: int) -> None:
        """Cancel all tasks of a process, as `asyncio.run` does when its main task ends."""
        program = self._group.slots[slot]
        await self._after_all_tasks(slot, program)

    async def _after_all_tasks(self, slot: int, program: Program) -> None:
        program.all_tasks_cancelled = True
        program.stop()
        tasks = self._group.loop.living(program.process)
        self._random.shuffle(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=20)
        self._group.journal.write(program.process, "killing")
        self._group.loop.kill(program.process)
        await self._sometime(1)
        self._group.replace(slot, program)

    async def _cut_off(self, slot: int) -> None:
        conditions = self._group.slots[slot].link.conditions
        conditions.down = True
        await self._sometime(3 * self._lease)
        conditions.down = False

    async def _storm(self, slot: int) -> None:
        conditions = self._group.slots[slot].link.conditions
        conditions.dropped, conditions.lost = self._random.uniform(0, 0.3), self._random.uniform(0, 0.3)
        conditions.latency = self._random.uniform(0, 0.3)
        await self._sometime(4)
        conditions.dropped, conditions.lost, conditions.latency = 0.0, 0.0, 0.003

    async def _break_the_disk(self, slot: int) -> None:
        process = self._group.slots[slot].process
        process.disk_errors = self._random.uniform(0, 0.3)
        await self._sometime(4)
        process.disk_errors = 0.0

    async def _step_clock(self, slot: int) -> None:
        process = self._group.slots[slot].process
        process.wall_offset = self._random.choice([-3600.0, 3600.0, -2.0, 2.0, 0.0])

    async def _sometime(self, seconds: float) -> None:
        await asyncio.sleep(self._random.uniform(0, seconds))

    def _note(self, text: str) -> None:
        self._group.journal.note(self._group.loop.environment, text)
