"""The thread that runs the statements of one SQLite connection, and the way of their answers to the event loop."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

Job = Callable[[], object]


class Jobs(Protocol):
    """Runs jobs in the order of their submission, one at a time; a job must not raise."""

    def start(self) -> None:
        """Make ready to run jobs.

        Raises:
            RuntimeError: the operating system allows no more threads.
        """
        ...

    def submit(self, job: Job) -> None:
        """Run `job` after all earlier ones, without waiting for it."""
        ...

    def end(self) -> None:
        """Run all submitted jobs, then end; without waiting."""
        ...


class JobThread:
    """A thread that runs jobs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.submit = self._jobs.put
        # A daemon: a statement that hangs in the file system must not prevent the end of the process. The thread has no
        # reference to this object or to the connection, so that an unclosed connection is garbage-collected.
        self._thread = threading.Thread(target=_run, args=(self._jobs,), name="sqlite", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._jobs.put(None)


def _run(jobs: "SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # while the thread waits, a job would keep its result in memory


def hand_over(answer: "asyncio.Future[Any]", result: object, failure: BaseException | None) -> None:
    """Set the answer of a job in its event loop; called in the thread."""
    with suppress(RuntimeError):  # the loop was closed: no task waits any more
        answer.get_loop().call_soon_threadsafe(_deliver, answer, result, failure)


def _deliver(answer: "asyncio.Future[Any]", result: object, failure: BaseException | None) -> None:
    if answer.done():  # cancelled
        return
    if failure is None:
        answer.set_result(result)
    elif isinstance(failure, StopIteration):  # a future refuses it
        error = RuntimeError("a job raised StopIteration")
        error.__cause__ = failure
        answer.set_exception(error)
    else:
        answer.set_exception(failure)
