"""Child processes: started, watched, stopped; and a child's side of it."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from beneath.errors import StartError
from beneath.lifecycle import Lifecycle
from infra.clock import Clock, SystemClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PARENT_FD = "--parent-fd"
STARTED = b"r"
"""What a child says to its parent once it has started."""

REFUSED = 2
"""A child's exit code when it cannot start as it was told to; starting it again would not help."""

BACKOFF_FIRST, BACKOFF_MOST = 1.0, 30.0
"""Seconds before a crashed child is started again: the first time, and at most."""

SPAWN_ERRORS = (OSError, RuntimeError, MemoryError)
"""What creating a process raises when the system has no memory, process ids, file descriptors or threads left."""

STEADY = 60.0
"""Seconds of life after which a child's next crash counts as its first."""


class Child(Protocol):
    """A child process."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    @property
    def started(self) -> bool:
        """Whether it said that it had started; complete once `wait` has returned."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    def stop(self) -> None:
        """Ask it to stop; when this process dies before it has, it exits at once."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


Spawn = Callable[[Sequence[str]], Awaitable[Child]]


async def spawn_beneath(arguments: Sequence[str]) -> Child:
    """Start `beneath` with `arguments`, connected so that each of the two notices when the other stops or ends."""
    ours, its = socket.socketpair()
    try:
        # A session of its own, so that Ctrl-C in a terminal reaches it once: through us.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "beneath", *arguments, PARENT_FD, str(its.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(its.fileno(),),
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return _Process(process, ours)


class _Process:
    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._connection.setblocking(False)
        self.started = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        code = await self._process.wait()
        with contextlib.suppress(OSError):  # there is nothing to read, or it is closed already
            self.started = self.started or self._connection.recv(1) == STARTED
        self._connection.close()
        return code

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(b"s")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class Supervised:
    """Keeps one child process running: a runnable."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        grace: float,
        spawn: Spawn = spawn_beneath,
        clock: Clock | None = None,
    ) -> None:
        """Run `beneath` with `arguments`; at a stop it gets `grace` seconds before it is killed."""
        self.name = name
        self._arguments = arguments
        self._grace = grace
        self._spawn = spawn
        self._clock = clock or SystemClock()

    async def run(self) -> None:
        """Start the process again, after a growing pause, whenever it ends or could not be created.

        Raises:
            StartError: the process refused its very first start. One that has started may exit with any code.
        """
        backoff, first = BACKOFF_FIRST, True
        while True:
            born = self._clock.monotonic()
            try:
                child = await self._spawn(self._arguments)
            except SPAWN_ERRORS as error:
                # Memory, process ids or file descriptors are short: reason to wait, not to stop the other processes.
                log.warning("process not started", process=self.name, error=reason(error), retry_in=backoff)
            else:
                code = await self._live(child)
                if first and code == REFUSED and not child.started:
                    raise StartError(f"{self.name} did not start; its error is in the line above")
                first = False
                if self._clock.monotonic() - born >= STEADY:
                    backoff = BACKOFF_FIRST
                log.error("process ended", process=self.name, code=code, retry_in=backoff)
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MOST)

    async def _live(self, child: Child) -> int:
        log.info("process started", process=self.name, pid=child.pid)
        ended = asyncio.ensure_future(child.wait())
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await stop_child(child, ended, grace=self._grace, clock=self._clock)
            raise


async def stop_child(child: Child, ended: asyncio.Future[int], *, grace: float, clock: Clock) -> None:
    """Ask a child to stop, and kill it when it has not within `grace` seconds."""
    child.stop()
    over = asyncio.Event()
    ended.add_done_callback(lambda _: over.set())
    if not await clock.wait(over, grace):
        log.error("process killed", pid=child.pid, grace=grace)
        child.kill()
    await ended


def reason(error: BaseException) -> str:
    """Return an error's class and text, for a log line."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


class WorkerPool:
    """Several worker processes as one runnable."""

    def __init__(self, name: str, workers: Sequence[Supervised], *, grace: float, clock: Clock | None = None) -> None:
        self.name = name
        self._workers = workers
        self._lifecycle = Lifecycle(grace=grace, clock=clock)

    async def run(self) -> None:
        await self._lifecycle.run(self._workers)


def watch_parent(
    parent_fd: int, stop: Callable[[], None], *, limit: float, exit_now: Callable[[int], object] = os._exit
) -> None:
    """In a child: call `stop` in the running loop when the parent says so or is no more.

    When the parent dies while this process stops, or this process has not ended `limit` seconds after the parent's
    death, it exits at once. A thread waits for it, so that a stuck event loop changes nothing.
    """
    loop = asyncio.get_running_loop()

    def wait() -> None:
        asked = _read(parent_fd)
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending anyway
            loop.call_soon_threadsafe(stop)
        if asked:
            _read(parent_fd)
        else:
            time.sleep(limit)
        exit_now(1)

    threading.Thread(target=wait, name="watch-parent", daemon=True).start()


def tell_parent(parent_fd: int) -> None:
    """In a child: say that it has started, so that its exit code is taken for a handler's from now on."""
    with contextlib.suppress(OSError):  # the parent is no more, as `watch_parent` notices
        os.write(parent_fd, STARTED)


def _read(parent_fd: int) -> bytes:
    try:
        return os.read(parent_fd, 1)
    except OSError:  # the parent has died without reading what this process said
        return b""
