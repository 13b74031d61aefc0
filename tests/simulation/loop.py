"""An event loop on virtual time that runs several simulated processes and picks the next callback by a seeded die.

Everything that a real loop leaves to chance is drawn from one `Random`: which ready callback runs next, how long it
takes, and what the faults do. So a seed is a schedule, and the same seed is the same schedule again.
"""

import asyncio
import heapq
from asyncio import base_events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import Any, TypeVar

_T = TypeVar("_T")

EPOCH = 1_700_000_000.0
"""The wall-clock time, in seconds since the epoch, at which every simulation starts."""

STEP = 20e-6
"""Virtual seconds that one callback takes at most; a busy loop thereby lets time pass."""

MAX_STEPS = 3_000_000
"""Callbacks after which a simulation counts as a livelock."""


class Stuck(Exception):
    """The simulation can make no progress, or makes none although it runs."""


class Process:
    """A simulated process: its tasks can be killed or frozen together, and it has clocks of its own."""

    def __init__(self, pid: int, random: Random, monotonic_offset: float = 0.0) -> None:
        self.pid = pid
        self.random = random
        self.dead = False
        self.frozen = False
        self.thawed_at = float("-inf")
        """When it was last frozen, or went on, by the loop's time."""

        self.waiting: list[asyncio.Handle] = []
        """Callbacks that are ready, kept until a frozen process goes on."""

        self.on_kill: list[Callable[[], None]] = []
        self.disk_errors = 0.0
        """The rate at which statements fail."""

        self.wall_offset = 0.0
        self.monotonic_offset = monotonic_offset


class World(Process):
    """What is no process of the application: the server, the network, and the faults."""


PROCESS: ContextVar[Process] = ContextVar("tests.simulation.process")


class SimulatedFuture(asyncio.Future[Any]):
    """A future whose place in a set depends on when it was made, and not on its address."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.number = number

    def __hash__(self) -> int:
        return self.number


class SimulatedTask(asyncio.Task[Any]):
    """The same for tasks; it knows its process."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, process: Process, **options: Any) -> None:  # noqa: ANN401 - asyncio's own
        self.number = number  # first: the constructor puts the task into a set
        super().__init__(coroutine, **options)
        self.process = process

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(base_events.BaseEventLoop):
    """Runs one ready callback at a time; when nothing is ready, time jumps to the next timer."""

    _scheduled: list[asyncio.TimerHandle]  # asyncio's heap of timers

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.steps = 0
        self.on_step: Callable[[], None] = _nothing
        """Called after each callback: the faults that strike at any await."""

        self.on_exit: Callable[[Process], None] = lambda _: None
        """Called when a process's loop would end, because a callback raised SystemExit: as at the end of a task."""

        self.tasks: list[SimulatedTask] = []
        """Every task, also those of killed processes: a coroutine that is collected would run its `finally` blocks."""

        self.world = World(0, random)
        self._now = 0.0
        self._numbers = 0
        self._ready: list[asyncio.Handle] = []  # a deque in asyncio, which cannot be drawn from
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # its protocol wants a name for the loop

    def time(self) -> float:
        return self._now

    def number(self) -> int:
        """Return the next of the numbers that stand for addresses."""
        self._numbers += 1
        return self._numbers

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start a task of `process`, which sees nothing of the context of its caller."""
        context = Context()
        context.run(PROCESS.set, process)
        return self.create_task(coroutine, context=context)

    def living(self, process: Process) -> list[SimulatedTask]:
        """Return the tasks of a process that have not ended, in the order in which they were made."""
        return [task for task in self.tasks if task.process is process and not task.done()]

    def kill(self, process: Process) -> None:
        """End a process at once: nothing of it ever runs again."""
        process.dead = True
        process.waiting.clear()
        for call in process.on_kill:
            call()

    def thaw(self, process: Process) -> None:
        """Let a frozen process go on with all that became ready meanwhile."""
        process.frozen = False
        process.thawed_at = self._now
        self._ready += process.waiting
        process.waiting.clear()

    def create_future(self) -> asyncio.Future[Any]:
        return SimulatedFuture(self.number(), self)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        context: Context | None = None,
        **options: Any,  # noqa: ANN401 - asyncio's own
    ) -> SimulatedTask:
        process = PROCESS.get(self.world) if context is None else context.get(PROCESS, self.world)
        task = SimulatedTask(coroutine, self.number(), process, loop=loop, context=context, **options)
        self.tasks.append(task)
        return task

    def _run_once(self) -> None:
        handle = self._next()
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Stuck(f"no end after {MAX_STEPS} callbacks, at {self._now:.3f} s")
        self._now += self.random.random() * STEP
        try:
            handle._run()
        except (SystemExit, KeyboardInterrupt):
            self.on_exit(handle._context.get(PROCESS, self.world))  # type: ignore[attr-defined]
        self.on_step()

    def _next(self) -> asyncio.Handle:
        while True:
            self._take_due()
            while self._ready:
                handle = self._draw()
                process = handle._context.get(PROCESS, self.world)  # type: ignore[attr-defined]
                if handle._cancelled or process.dead:
                    continue
                if not process.frozen:
                    return handle
                process.waiting.append(handle)
            if not self._scheduled:
                raise Stuck(f"nothing is ready and no timer is set, at {self._now:.3f} s")
            self._now = max(self._now, self._scheduled[0].when())

    def _take_due(self) -> None:
        while self._scheduled and self._scheduled[0].when() <= self._now:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(timer)

    def _draw(self) -> asyncio.Handle:
        ready = self._ready
        place = int(self.random.random() * len(ready))
        ready[place], ready[-1] = ready[-1], ready[place]
        return ready.pop()

    def _write_to_self(self) -> None:
        """Wake nobody: there is no selector to sleep in."""

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there is no I/O."""


def current() -> Process:
    """Return the process whose code is running."""
    return PROCESS.get()


def _nothing() -> None:
    """Strike nowhere."""
