"""What goes wrong in a simulation, and when."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

from tests.simulation.journal import SimulatedJournal
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.program import Program

EVERY = 0.8
"""Seconds between two faults, on average."""


class Town(Protocol):
    """The processes that faults strike."""

    loop: SimulatedLoop
    journal: SimulatedJournal
    slots: list[Program]

    def finish(self, program: Program) -> None:
        """Bury what is left of a process that has ended."""
        ...

    def replace(self, slot: int, program: Program) -> None:
        """Start a new process in place of one that has ended, unless that was done."""
        ...


class Faults:
    """Strikes until told to end; a strike's consequences are repaired by the strike itself.

    With `mild` faults no process dies or loses its lease by them: what then kills processes are their handlers.
    """

    def __init__(self, town: Town, random: Random, lease: float, *, mild: bool) -> None:
        self._town = town
        self._random = random
        self._lease = lease
        self._busy: set[int] = set()
        self._until_cancellation = random.randrange(50, 2000)
        possible: list[Callable[[int], Awaitable[None]]] = [self._stop, self._step_clock, self._break_the_disk]
        if not mild:
            possible += [self._kill, self._freeze, self._end_all_tasks, self._cut_off, self._storm]
        self._all = random.sample(possible, random.randrange(2, len(possible) + 1))
        self._cancelling = random.random() < 0.7
        self._struck: list[asyncio.Task[None]] = []

    async def strike(self, seconds: float) -> None:
        """Let things go wrong for so long, and return when all is well again."""
        loop = self._town.loop
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(self._random.expovariate(1 / EVERY))
            self._replace_ended()
            slot = self._random.randrange(len(self._town.slots))
            if slot in self._busy:
                continue
            self._busy.add(slot)
            fault = self._random.choice(self._all)
            self._struck.append(asyncio.create_task(self._strike(fault, slot)))
        self._cancelling = False
        await asyncio.gather(*self._struck)

    async def _strike(self, fault: Callable[[int], Awaitable[None]], slot: int) -> None:
        self._note(f"fault {fault.__name__} strikes {self._town.slots[slot].process.pid}")
        try:
            await fault(slot)
            self._replace_if_ended(slot)
        finally:
            self._busy.discard(slot)

    def _replace_ended(self) -> None:
        """Start again what ended by itself: a handler exited, or the process could not start."""
        for slot in range(len(self._town.slots)):
            if slot not in self._busy:
                self._replace_if_ended(slot)

    def _replace_if_ended(self, slot: int) -> None:
        program = self._town.slots[slot]
        if program.task.done() and not program.collapsing:
            self._town.finish(program)
            self._town.replace(slot, program)

    def on_step(self) -> None:
        """Cancel some publisher at whatever it awaits now, every now and then."""
        self._until_cancellation -= 1
        if self._until_cancellation > 0 or not self._cancelling:
            return
        self._until_cancellation = self._random.randrange(20, 1500)
        alive = [
            task
            for program in self._town.slots
            if not program.process.dead and not program.stopping
            for task in program.publishers
            if not task.done()
        ]
        if alive:
            task = self._random.choice(alive)
            self._note(f"fault cancel strikes {task.get_name()} of {task.process.pid}")
            task.cancel()

    def on_exit(self, process: Process) -> None:
        """End a process whose loop a SystemExit has ended, as `asyncio.run` does."""
        for slot, program in enumerate(self._town.slots):
            if program.process is process and not process.dead and not program.collapsing:
                self._note(f"exit ends the loop of {process.pid}")
                self._town.loop.spawn(self._town.loop.world, self._after_all_tasks(slot, program))

    async def _kill(self, slot: int) -> None:
        program = self._town.slots[slot]
        self._town.journal.write(program.process, "killing")
        self._town.loop.kill(program.process)
        await self._sometime(2)
        self._town.replace(slot, program)

    async def _freeze(self, slot: int) -> None:
        process = self._town.slots[slot].process
        self._town.journal.write(process, "pausing")
        process.frozen, process.thawed_at = True, self._town.loop.time()
        await self._sometime(self._random.choice([1, 2.5, 2.5, 8]) * self._lease)
        self._town.loop.thaw(process)
        await asyncio.sleep(1)  # until it knows whether its lease is lost
        self._town.journal.write(process, "cut off")

    async def _stop(self, slot: int) -> None:
        program = self._town.slots[slot]
        program.stop()
        await asyncio.wait((program.task,), timeout=60)
        if not program.collapsing:
            self._town.finish(program)
            await self._sometime(1)
            self._town.replace(slot, program)

    async def _end_all_tasks(self, slot: int) -> None:
        """Do what `asyncio.run` does when its main task ends: cancel everything else."""
        program = self._town.slots[slot]
        await self._after_all_tasks(slot, program)

    async def _after_all_tasks(self, slot: int, program: Program) -> None:
        program.collapsing = True
        program.stop()
        tasks = self._town.loop.living(program.process)
        self._random.shuffle(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=20)
        self._town.journal.write(program.process, "killing")
        self._town.loop.kill(program.process)
        await self._sometime(1)
        self._town.replace(slot, program)

    async def _cut_off(self, slot: int) -> None:
        weather = self._town.slots[slot].link.weather
        weather.down = True
        await self._sometime(3 * self._lease)
        weather.down = False

    async def _storm(self, slot: int) -> None:
        weather = self._town.slots[slot].link.weather
        weather.dropped, weather.lost = self._random.uniform(0, 0.3), self._random.uniform(0, 0.3)
        weather.latency = self._random.uniform(0, 0.3)
        await self._sometime(4)
        weather.dropped, weather.lost, weather.latency = 0.0, 0.0, 0.003

    async def _break_the_disk(self, slot: int) -> None:
        process = self._town.slots[slot].process
        process.disk_errors = self._random.uniform(0, 0.3)
        await self._sometime(4)
        process.disk_errors = 0.0

    async def _step_clock(self, slot: int) -> None:
        process = self._town.slots[slot].process
        process.wall_offset = self._random.choice([-3600.0, 3600.0, -2.0, 2.0, 0.0])

    async def _sometime(self, seconds: float) -> None:
        await asyncio.sleep(self._random.uniform(0, seconds))

    def _note(self, text: str) -> None:
        self._town.journal.note(self._town.loop.world, text)
