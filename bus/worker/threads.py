"""Threads for plain `def` handlers: daemons, so that one that never ends cannot keep the process."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from infra.failures import describe


class NoThread(Exception):
    """No thread could be started: the function was not called, and will not be."""


class Ended(NamedTuple):
    """How a function ended in its thread."""

    result: object
    error: Exception | None


Job = tuple[Callable[[], object], asyncio.Future[Ended], asyncio.AbstractEventLoop]


class ThreadPool:
    """Grows with the work that waits; idle threads are used again, and none is ever joined."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], object]) -> asyncio.Future[Ended]:
        """Call `function` once in a thread, in a copy of this context; the future says how it ended.

        Cancelling the future leaves it running there.

        Raises:
            NoThread: there is none for it; it was not called.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ended] = loop.create_future()
        with self._lock:
            grow = self._idle == 0
            if not grow:
                self._idle -= 1
        if grow:
            self._start_thread()  # before the job is queued: a job without a thread of its own might run late, or never
        context = contextvars.copy_context()
        self._jobs.put((lambda: context.run(function), future, loop))
        return future

    def close(self) -> None:
        """Let the idle threads end now, and the others when they have run what they run."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._jobs.put(None)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._threads + 1}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            raise NoThread(f"no thread for a plain `def` handler: {describe(error)}") from error
        self._threads += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            ended = _run(function)
            with self._lock:
                last = self._closed
                self._idle += not last
            try:
                loop.call_soon_threadsafe(_finish, future, ended)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            if last:
                return
            del job, function, future, loop, ended  # an idle thread keeps nothing of what it ran


def _run(function: Callable[[], object]) -> Ended:
    try:
        return Ended(function(), None)
    except (StopIteration, StopAsyncIteration) as raised:
        # Raised in a coroutine they would mean something else.
        error: Exception = RuntimeError(f"the handler raised {describe(raised)}")
        error.__cause__ = raised
        return Ended(None, error)
    except Exception as raised:  # noqa: BLE001 - it belongs to the awaiting task
        return Ended(None, raised)
    except BaseException as raised:  # noqa: BLE001 - sys.exit() in a thread ends the thread, not the process
        error = RuntimeError(f"the handler raised {describe(raised)}")
        error.__cause__ = raised
        return Ended(None, error)


def _finish(future: asyncio.Future[Ended], ended: Ended) -> None:
    if not future.done():
        future.set_result(ended)
