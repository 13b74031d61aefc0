"""A deterministic event loop on virtual time, which runs several simulated processes.

All nondeterminism comes from one seeded `Random`: which ready callback runs next, how long it takes, and which faults
are injected. The same seed gives the same schedule.
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
"""The wall-clock time in seconds at which every simulation starts."""

STEP = 20e-6
"""Maximum virtual seconds of one callback, so that time passes in a busy loop too."""

MAX_STEPS = 3_000_000
"""Callbacks after which a simulation counts as a livelock."""


class Stuck(Exception):
    """The simulation makes no progress: no callback is ready, or it runs without end."""


class Process:
    """A simulated process, with its own clocks; all its tasks can be killed or frozen together."""

    def __init__(self, pid: int, random: Random, monotonic_offset: float = 0.0) -> None:
        self.pid = pid
        self.random = random
        self.dead = False
        self.frozen = False
        self.thawed_at = float("-inf")
        """The loop's time at which the process was last frozen or resumed."""

        self.waiting: list[asyncio.Handle] = []
        """Ready callbacks of a frozen process, kept until it is resumed."""

        self.on_kill: list[Callable[[], None]] = []
        self.disk_errors = 0.0
        """The rate of statements that fail."""

        self.wall_offset = 0.0
        self.monotonic_offset = monotonic_offset


class Environment(Process):
    """The process of all tasks outside of the application: the server, the network, and the faults."""


PROCESS: ContextVar[Process] = ContextVar("tests.simulation.process")


class SimulatedFuture(asyncio.Future[Any]):
    """A future that is hashed by its creation number, so that the order of sets does not depend on addresses."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.number = number

    def __hash__(self) -> int:
        return self.number


class SimulatedTask(asyncio.Task[Any]):
    """A task that is hashed by its creation number, and belongs to a process."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, process: Process, **options: Any) -> None:  # noqa: ANN401 - those of asyncio.Task
        self.number = number  # set first, as the constructor puts the task into a set
        super().__init__(coroutine, **options)
        self.process = process

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(base_events.BaseEventLoop):
    """An event loop that runs one random ready callback at a time, and advances to the next timer if none is ready."""

    _scheduled: list[asyncio.TimerHandle]  # the heap of timers in BaseEventLoop

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.steps = 0
        self.on_step: Callable[[], None] = _nothing
        """Called after each callback, to inject faults at any await."""

        self.on_exit: Callable[[Process], None] = lambda _: None
        """Called with the process whose callback raised SystemExit, which would end its loop."""

        self.tasks: list[SimulatedTask] = []
        """All tasks, also of killed processes: a coroutine that is garbage-collected would run its `finally` blocks."""

        self.environment = Environment(0, random)
        self._now = 0.0
        self._numbers = 0
        self._ready: list[asyncio.Handle] = []  # a deque in asyncio, which allows no random access
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # the protocol takes the loop by name

    def time(self) -> float:
        return self._now

    def number(self) -> int:
        """Return the next creation number, which replaces an address as a hash."""
        self._numbers += 1
        return self._numbers

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start a task of `process` in an empty context."""
        context = Context()
        context.run(PROCESS.set, process)
        return self.create_task(coroutine, context=context)

    def living(self, process: Process) -> list[SimulatedTask]:
        """Return the tasks of a process that have not ended, in the order of their creation."""
        return [task for task in self.tasks if task.process is process and not task.done()]

    def kill(self, process: Process) -> None:
        """End a process at once, so that none of its callbacks runs again."""
        process.dead = True
        process.waiting.clear()
        for call in process.on_kill:
            call()

    def thaw(self, process: Process) -> None:
        """Resume a frozen process, with all callbacks that became ready meanwhile."""
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
        **options: Any,  # noqa: ANN401 - those of asyncio.Task
    ) -> SimulatedTask:
        process = PROCESS.get(self.environment) if context is None else context.get(PROCESS, self.environment)
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
            self.on_exit(handle._context.get(PROCESS, self.environment))  # type: ignore[attr-defined]
        self.on_step()

    def _next(self) -> asyncio.Handle:
        while True:
            self._take_due()
            while self._ready:
                handle = self._draw()
                process = handle._context.get(PROCESS, self.environment)  # type: ignore[attr-defined]
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
        """Do nothing, as there is no selector to wake up."""

    def _process_events(self, event_list: object) -> None:
        """Do nothing, as there is no I/O."""


def current() -> Process:
    """Return the process whose code is running."""
    return PROCESS.get()


def _nothing() -> None:
    """Inject no fault."""
