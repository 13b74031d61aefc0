"""Supervision of background tasks: failures are logged, restarts are delayed, lasting failures end the process.

A supervisor runs each task until it returns or is stopped. A task that raises is logged as `background task failed` and
restarted after a growing delay. After `max_failures` failures in a row that are not transient the supervisor gives up:
`guard()` and `watch()` then raise, so that the process ends and can be restarted whole.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from infra.clock import Clock
from infra.failures import describe, render_traceback

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_FAILURES = 20
"""Failures in a row, transient ones not counted, after which a supervisor gives up: a little over a minute."""

MIN_BACKOFF = 0.1
"""The pause, in seconds, after the first failure in a row; it doubles with each further one."""

MAX_BACKOFF = 5.0
"""The longest pause, in seconds, between two attempts."""

HEALTHY_AFTER = 60.0
"""Seconds after which an attempt that is still running counts as a success."""

INTERRUPT_AGAIN = 0.1
"""Seconds after which a guarded block that was just being cancelled is interrupted, unless it has ended."""

Work = Callable[[], Coroutine[Any, Any, None]]
"""Runs a background task once, until it has nothing more to do; called again after it raised."""


def ends_task(task: asyncio.Task[Any] | None, error: BaseException, cancelled_before: int = 0) -> bool:
    """Whether an error ends `task`, whose code raised it: an exit, its cancellation, or the end of its coroutine.

    All others are failures of what the task did: a cancellation of something that it awaited, or a GeneratorExit that
    its code raised. `cancelled_before` is what `task.cancelling()` said when the work began.
    """
    kind = type(error)
    if issubclass(kind, GeneratorExit):
        with suppress(RuntimeError):  # no event loop runs
            return asyncio.current_task() is not task
        return True
    if issubclass(kind, asyncio.CancelledError):
        return task is None or task.cancelling() > cancelled_before
    return issubclass(kind, SystemExit | KeyboardInterrupt)


class BackgroundTaskFailed(Exception):
    """A background task failed too often in a row; the process should end and be restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """The state of the background tasks of one name."""

    name: str
    running: int
    """Their present number."""

    failures: int
    """The number of failures in a row of the one that has most; 0 once it has made progress."""

    failures_total: int
    """All failures since the supervisor was made."""

    transient: bool
    """Whether the latest failure in a row is one that passes by itself, such as an unavailable server."""

    error: str
    """The latest failure in a row; empty once the task has made progress."""

    @property
    def failing(self) -> bool:
        """Whether it fails for a reason that will not pass by itself."""
        return self.failures > 0 and not self.transient


class Health:
    """The failures of one background task: counted, logged, and turned into a pause before the next attempt."""

    def __init__(self, supervisor: "Supervisor", name: str, max_backoff: float = MAX_BACKOFF) -> None:
        self.name = name
        self._max_backoff = max_backoff
        self.failures = 0
        self.error = ""
        self.transient = False
        self._supervisor = supervisor
        self._counted = 0

    def succeeded(self) -> None:
        """Note progress: the next failure is the first in a row again. Cheap, so that a loop may call it each time."""
        if self.failures:
            self.failures = self._counted = 0
            self.error = ""
            self.transient = False
            with suppress(Exception):
                log.info("background task recovered", task=self.name)

    def failed(self, error: BaseException) -> float:
        """Note and log a failure, and return the pause in seconds before the next attempt."""
        self.failures += 1
        self.error = describe(error)
        self.transient = self._supervisor.is_transient(error)
        retry_in = min(MIN_BACKOFF * 2.0 ** min(self.failures - 1, 32), self._max_backoff)
        if not self.transient:
            self._counted += 1
        with suppress(Exception):  # a log that cannot be written, as on a full disk, must not end the task
            self._log(error, retry_in)
        self._supervisor.count(self, given_up=self._counted >= self._supervisor.max_failures, cause=error)
        return retry_in

    def _log(self, error: BaseException, retry_in: float) -> None:
        if self.transient:
            log.warning("background task failed", task=self.name, error=self.error, retry_in=retry_in, transient=True)
            return
        log.error(
            "background task failed",
            task=self.name,
            error=self.error,
            retry_in=retry_in,
            failures=self._counted,
            exception=render_traceback(error),
        )


class SupervisedTask(Health):
    """One background task, restarted until it returns or is stopped."""

    def __init__(self, supervisor: "Supervisor", name: str, work: Work, clock: Clock, max_backoff: float) -> None:
        super().__init__(supervisor, name, max_backoff)
        self._work = work
        self._clock = clock
        self._stopping = False
        self._began: float | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._task = self._begin()

    def done(self) -> bool:
        """Whether it has ended: it returned, or was stopped."""
        return self._task.done() and self._restart is None

    @property
    def running(self) -> bool:
        """Whether the work runs, or waits to be restarted after a failure."""
        return not self._task.done()

    def note_age(self) -> None:
        """Count an attempt that has been running for long as a success."""
        if self._began is not None and self._clock.monotonic() - self._began >= HEALTHY_AFTER:
            self.succeeded()

    async def stop(self) -> None:
        """Cancel it and wait for its end, however often this call is cancelled meanwhile."""
        self.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not self._task.done():
            try:
                await asyncio.wait((self._task,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def cancel(self) -> None:
        """Ask it to end, without waiting for that."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._task.cancel()

    def _begin(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run(), name=self.name)
        task.add_done_callback(self._ended)
        return task

    async def _run(self) -> None:
        task = asyncio.current_task()
        while True:
            self._began = self._clock.monotonic()
            try:
                await self._work()
            except BaseException as error:
                if ends_task(task, error):
                    raise
                failure = error
            else:
                self.succeeded()
                return
            self.note_age()
            self._began = None
            pause = self.failed(failure)
            del failure  # its traceback holds this frame
            await self._clock.sleep(pause)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # no code awaits this task; a SystemExit has already reached the loop's caller
        elif not self._stopping:
            # Cancelled by foreign code. At the end of `asyncio.run` the loop stops before the timer fires; if a
            # handler did it, by cancelling every task that it found, the work goes on.
            self._restart = task.get_loop().call_later(MIN_BACKOFF, self._begin_again)
            return
        self._supervisor.forget(self)

    def _begin_again(self) -> None:
        self._restart = None
        log.warning("background task cancelled", task=self.name)
        self._task = self._begin()


class Supervisor:
    """The background tasks of one process, or of one part of it."""

    def __init__(
        self,
        clock: Clock,
        *,
        transient: tuple[type[BaseException], ...] = (),
        max_failures: int = MAX_FAILURES,
    ) -> None:
        """Begin without tasks. Failures of the classes in `transient` never end the supervision."""
        self.max_failures = max_failures
        self._clock = clock
        self._transient = transient
        self._tasks: list[SupervisedTask] = []
        self._healths: dict[str, Health] = {}
        self._totals: dict[str, int] = {}
        self._verdict: BaseException | None = None
        self._ended = asyncio.Event()
        self._guards: list[Callable[[], object]] = []

    def start(self, name: str, work: Work, *, max_backoff: float = MAX_BACKOFF) -> SupervisedTask:
        """Run `work` in a task until it returns or is stopped; restart it whenever it raises.

        A restart follows after a pause of 0.1 s at first, doubled with each failure in a row up to `max_backoff`.
        Several tasks may share a name; their states are shown together.
        """
        task = SupervisedTask(self, name, work, self._clock, max_backoff)
        self._tasks.append(task)
        self._totals.setdefault(name, 0)
        return task

    def health(self, name: str) -> Health:
        """Return the one count of failures under that name, for work that runs in tasks of its owner."""
        self._totals.setdefault(name, 0)
        return self._healths.setdefault(name, Health(self, name))

    async def close(self) -> None:
        """Stop every task."""
        tasks = list(self._tasks)
        for each in tasks:
            each.cancel()
        for each in tasks:
            await each.stop()

    def states(self) -> list[TaskState]:
        """Return the state of every name that was ever started, in order of the first start."""
        return [self._state(name) for name in self._totals]

    @property
    def failing(self) -> list[TaskState]:
        """Those that fail for reasons that will not pass by themselves."""
        return [each for each in self.states() if each.failing]

    def end(self, error: BaseException) -> None:
        """Make every `guard()` and `watch()` raise `error`, now and from now on; the first error counts."""
        if self._verdict is None:
            self._verdict = error
            self._ended.set()
            for interrupt in list(self._guards):
                interrupt()

    async def watch(self) -> None:
        """Wait for ever, or until the supervisor gives up.

        Raises:
            BackgroundTaskFailed: a task failed too often in a row.
            BaseException: what `end` was called with.
        """
        await self._ended.wait()
        assert self._verdict is not None  # noqa: S101 - it was set before the event
        raise self._verdict

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Surround a block that is cancelled when the supervisor gives up; leaving the block raises the cause then.

        Raises: what `watch` raises.
        """
        if self._verdict is not None:
            raise self._verdict
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        asked = task.cancelling()
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if interrupt not in self._guards:
                return
            if task.cancelling() > asked:
                # The block ends already, and a second cancellation would cut that short; look again in case it goes on.
                task.get_loop().call_later(INTERRUPT_AGAIN, interrupt)
                return
            interrupted = True
            task.cancel()

        self._guards.append(interrupt)
        try:
            yield
        except asyncio.CancelledError:
            if interrupted and task.uncancel() <= asked and self._verdict is not None:
                raise self._verdict from None
            raise
        finally:
            self._guards.remove(interrupt)

    # --- for `Health` -----------------------------------------------------------------------------------------------

    def is_transient(self, error: BaseException) -> bool:
        """Whether an error passes by itself; a group does if all in it do."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.is_transient(each) for each in error.exceptions)
        return isinstance(error, self._transient)

    def count(self, health: Health, *, given_up: bool, cause: BaseException) -> None:
        """Count a failure; with `given_up` it is the last one."""
        self._totals[health.name] += 1
        if given_up:
            failed = BackgroundTaskFailed(
                f"the background task {health.name!r} failed {health.failures} times in a row: {health.error}"
            )
            failed.__cause__ = cause
            self.end(failed)

    def forget(self, task: SupervisedTask) -> None:
        """Drop a task that has ended."""
        if task in self._tasks:
            self._tasks.remove(task)

    def _state(self, name: str) -> TaskState:
        tasks = [each for each in self._tasks if each.name == name]
        for each in tasks:
            each.note_age()
        known = [*tasks, *([self._healths[name]] if name in self._healths else [])]
        worst = max(known, key=lambda each: (each.failures > 0 and not each.transient, each.failures), default=None)
        return TaskState(
            name=name,
            running=len(tasks),
            failures=worst.failures if worst else 0,
            failures_total=self._totals[name],
            transient=worst.transient if worst else False,
            error=worst.error if worst else "",
        )
