"""Threads for plain `def` handlers: daemons, so that a handler that never ends does not keep the process alive."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from infra.failures import describe


class NoThread(Exception):
    """No thread could be started; the function was not called."""


class CallResult(NamedTuple):
    """The return value or the error of a function that ran in a thread."""

    result: object
    error: Exception | None


Job = tuple[Callable[[], object], asyncio.Future[CallResult], asyncio.AbstractEventLoop]


class ThreadPool:
    """Runs each function in an idle thread, or in a new one; joins no thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], object]) -> asyncio.Future[CallResult]:
        """Call `function` once in a thread, in a copy of the current context; return a future of its result.

        The function runs to its end even if the future is cancelled.

        Raises:
            NoThread: no thread could be started; the function was not called.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[CallResult] = loop.create_future()
        with self._lock:
            grow = self._idle == 0
            if not grow:
                self._idle -= 1
        if grow:
            self._start_thread()  # first: a job that was queued without a thread might never run
        context = contextvars.copy_context()
        self._jobs.put((lambda: context.run(function), future, loop))
        return future

    def close(self) -> None:
        """End idle threads now, and busy threads after their present function."""
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
                return  # the loop is closed, so no task waits for the result
            if last:
                return
            del job, function, future, loop, ended  # an idle thread must not keep their objects alive


def _run(function: Callable[[], object]) -> CallResult:
    try:
        return CallResult(function(), None)
    except (StopIteration, StopAsyncIteration) as raised:
        # The event loop gives these errors a meaning of their own when a coroutine raises them.
        error: Exception = RuntimeError(f"the handler raised {describe(raised)}")
        error.__cause__ = raised
        return CallResult(None, error)
    except Exception as raised:  # noqa: BLE001 - the awaiting task raises it
        return CallResult(None, raised)
    except BaseException as raised:  # noqa: BLE001 - sys.exit() in a thread does not end the process
        error = RuntimeError(f"the handler raised {describe(raised)}")
        error.__cause__ = raised
        return CallResult(None, error)


def _finish(future: asyncio.Future[CallResult], ended: CallResult) -> None:
    if not future.done():
        future.set_result(ended)
