"""Child processes: the supervisor that starts, restarts and stops them, and the child's connection to its parent."""

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
from beneath.runtime.lifecycle import Lifecycle
from infra.backoff import Backoff
from infra.clock import Clock, SystemClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PARENT_FD = "--parent-fd"
STARTED = b"r"
"""The byte that a child sends to its parent once it has started."""

REFUSED = 2
"""A child's exit code for invalid settings or arguments, with which a restart would fail again."""

BACKOFF_FIRST, BACKOFF_MOST = 1.0, 30.0
"""Seconds before a crashed child is restarted: after the first crash, and at most."""

SPAWN_ERRORS = (OSError, RuntimeError, MemoryError)
"""Errors of creating a process when memory, process ids, file descriptors or threads have run out."""

STEADY = 60.0
"""Seconds of running after which the backoff of a child starts anew."""


class Child(Protocol):
    """A child process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def started(self) -> bool:
        """Whether it reported that it had started; final once `wait` has returned."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    def stop(self) -> None:
        """Request its shutdown. If this process dies before the child has ended, the child exits at once."""
        ...

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        ...


Spawn = Callable[[Sequence[str]], Awaitable[Child]]


async def spawn_beneath(arguments: Sequence[str]) -> Child:
    """Start `beneath` with `arguments` as a child, connected by a socket on which each notices the end of the other."""
    ours, its = socket.socketpair()
    try:
        # In a session of its own, Ctrl-C in a terminal does not reach the child as well.
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
        with contextlib.suppress(OSError):  # no byte to read, or already closed
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
    """The supervisor of one child process: a runnable that restarts it whenever it ends."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        grace: float,
        spawn: Spawn = spawn_beneath,
        clock: Clock | None = None,
    ) -> None:
        """Run `beneath` with `arguments`; at shutdown it has `grace` seconds before it is killed."""
        self.name = name
        self._arguments = arguments
        self._grace = grace
        self._spawn = spawn
        self._clock = clock or SystemClock()

    async def run(self) -> None:
        """Restart the process, after a growing backoff, whenever it ends or could not be created.

        Raises:
            StartError: its first start failed with the exit code for invalid settings or arguments.
        """
        backoff, first = Backoff(BACKOFF_FIRST, BACKOFF_MOST), True
        while True:
            born = self._clock.monotonic()
            try:
                child = await self._spawn(self._arguments)
            except SPAWN_ERRORS as error:
                # A shortage on this machine may pass; the other processes go on.
                retry_in = backoff.failed()
                log.warning("process not started", process=self.name, error=reason(error), retry_in=retry_in)
            else:
                code = await self._live(child)
                if first and code == REFUSED and not child.started:
                    raise StartError(f"{self.name} did not start; see its error in the line above")
                first = False
                if self._clock.monotonic() - born >= STEADY:
                    backoff.succeeded()
                retry_in = backoff.failed()
                log.error("process ended", process=self.name, code=code, retry_in=retry_in)
            await self._clock.sleep(retry_in)

    async def _live(self, child: Child) -> int:
        log.info("process started", process=self.name, pid=child.pid)
        ended = asyncio.ensure_future(child.wait())
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await stop_child(child, ended, grace=self._grace, clock=self._clock)
            raise


async def stop_child(child: Child, ended: asyncio.Future[int], *, grace: float, clock: Clock) -> None:
    """Request a child's shutdown, and kill it if it has not ended within `grace` seconds."""
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
    """In a child: call `stop` in the running loop when the parent requests it or has ended.

    The process exits at once if the parent ends while it shuts down, or `limit` seconds after the parent's end. A
    thread waits for both, so that a blocked event loop does not matter.
    """
    loop = asyncio.get_running_loop()

    def wait() -> None:
        asked = _read(parent_fd)
        with contextlib.suppress(RuntimeError):  # the loop is closed, so this process is about to end
            loop.call_soon_threadsafe(stop)
        if asked:
            _read(parent_fd)
        else:
            time.sleep(limit)
        exit_now(1)

    threading.Thread(target=wait, name="watch-parent", daemon=True).start()


def notify_parent(parent_fd: int) -> None:
    """In a child: report that it has started, after which no exit code counts as a failed start."""
    with contextlib.suppress(OSError):  # the parent has ended; `watch_parent` handles that
        os.write(parent_fd, STARTED)


def _read(parent_fd: int) -> bytes:
    try:
        return os.read(parent_fd, 1)
    except OSError:  # the parent ended without reading what this process sent
        return b""
