"""Threads for plain `def` handlers: daemons, so that one that never ends cannot keep the process."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = tuple[Callable[[], object], asyncio.Future[None], asyncio.AbstractEventLoop]


class ThreadPool:
    """Grows with the work that waits; idle threads are used again, and none is ever joined."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[[], object]) -> None:
        """Call `function` in a thread, in a copy of this context; a cancelled wait leaves it running there."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        context = contextvars.copy_context()
        with self._lock:
            grow = self._idle == 0
            if grow:
                self._threads += 1
            else:
                self._idle -= 1
        self._jobs.put((lambda: context.run(function), future, loop))
        if grow:
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        await future

    def close(self) -> None:
        """Let the idle threads end."""
        with self._lock:
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            error: BaseException | None = None
            try:
                function()
            except Exception as raised:  # noqa: BLE001 - it belongs to the awaiting task
                error = _deliverable(raised)
            except BaseException as raised:  # noqa: BLE001 - sys.exit() in a thread ends the thread, not the process
                error = RuntimeError(f"the handler raised {type(raised).__name__}: {raised}")
            with self._lock:
                self._idle += 1
            try:
                loop.call_soon_threadsafe(_finish, future, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more


def _deliverable(error: Exception) -> Exception:
    # A future refuses StopIteration: in a coroutine it would mean something else.
    return RuntimeError(f"the handler raised {error!r}") if isinstance(error, StopIteration) else error


def _finish(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
