"""The supervisor of worker processes, with fake children: restarts, shutdown, and the death of the parent."""

import asyncio
import errno
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from beneath.errors import StartError
from beneath.runtime.processes import REFUSED, Supervised, WorkerPool, notify_parent, spawn_beneath, watch_parent
from infra.clock import FakeClock


class FakeChild:
    """A process that ends when the test ends it."""

    def __init__(self, *, obeys: bool = True) -> None:
        self.obeys = obeys
        self.asked = self.killed = False
        self.started = False
        self.pid = id(self)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def stop(self) -> None:
        self.asked = True
        if self.obeys:
            self.end(0)

    def kill(self) -> None:
        self.killed = True
        self.end(-9)


class FakeSpawner:
    """Starts and records fake children."""

    def __init__(self, *, obeys: bool = True) -> None:
        self.obeys = obeys
        self.children: list[FakeChild] = []

    async def spawn(self, _arguments: Sequence[str]) -> FakeChild:
        self.children.append(FakeChild(obeys=self.obeys))
        return self.children[-1]


async def test_ended_child_is_restarted_after_a_growing_delay() -> None:
    clock, spawner = FakeClock(), FakeSpawner()
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    for pause in (1, 2, 4, 8, 16, 30, 30):
        before = len(spawner.children)
        spawner.children[-1].end(1)
        await clock.advance(pause - 0.1)
        assert len(spawner.children) == before
        await clock.advance(0.2)
        assert len(spawner.children) == before + 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Starved(FakeSpawner):
    """A factory that raises `error` in place of creating the processes of the given numbers, counted from 0."""

    def __init__(self, error: Exception, *failing: int) -> None:
        super().__init__()
        self.error = error
        self.failing = failing
        self.tries = 0

    async def spawn(self, arguments: Sequence[str]) -> FakeChild:
        self.tries += 1
        if self.tries - 1 in self.failing:
            raise self.error
        return await super().spawn(arguments)


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
    ids=["EAGAIN", "ENOMEM", "EMFILE", "thread", "memory"],
)
async def test_a_failed_fork_is_retried_with_backoff_and_stops_no_other_worker(error: Exception) -> None:
    clock, healthy, starved = FakeClock(), FakeSpawner(), Starved(error, 1, 2)
    workers = [
        Supervised("worker 1 of 2", (), grace=5, spawn=healthy.spawn, clock=clock),
        Supervised("worker 2 of 2", (), grace=5, spawn=starved.spawn, clock=clock),
    ]
    running = asyncio.create_task(WorkerPool("pool", workers, grace=10, clock=clock).run())
    await clock.settle()
    starved.children[0].end(-9)
    for pause, tries in ((1, 2), (2, 3), (4, 4)):
        await clock.advance(pause - 0.5)
        assert starved.tries == tries - 1
        await clock.advance(0.5)
        assert starved.tries == tries
    assert len(starved.children) == 2
    assert (len(healthy.children), healthy.children[0].asked, running.done()) == (1, False, False)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert starved.children[1].asked


async def test_failed_first_fork_is_retried_and_its_child_may_refuse_to_start() -> None:
    clock, starved = FakeClock(), Starved(OSError(errno.EAGAIN, "Resource temporarily unavailable"), 0)
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=starved.spawn, clock=clock).run())
    await clock.settle()
    await clock.advance(1.1)
    starved.children[0].end(REFUSED)
    with pytest.raises(StartError, match="worker did not start"):
        await running


async def test_a_process_that_cannot_be_created_leaves_no_file_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def starved(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    pair = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: pair)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", starved)
    with pytest.raises(BlockingIOError):
        await spawn_beneath(())
    assert [end.fileno() for end in pair] == [-1, -1]


async def test_long_run_resets_the_restart_pause() -> None:
    clock, spawner = FakeClock(), FakeSpawner()
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    for _ in range(4):
        spawner.children[-1].end(-9)
        await clock.advance(20)
    count = len(spawner.children)
    await clock.advance(60)
    spawner.children[-1].end(-9)
    await clock.advance(1.1)
    assert len(spawner.children) == count + 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_refused_start_is_an_error_the_first_time_only() -> None:
    clock, spawner = FakeClock(), FakeSpawner()
    running = asyncio.create_task(Supervised("worker 1 of 2", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    spawner.children[0].end(REFUSED)
    with pytest.raises(StartError, match="worker 1 of 2 did not start"):
        await running

    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    spawner.children[-1].end(-9)
    await clock.advance(1.1)
    spawner.children[-1].end(REFUSED)
    await clock.advance(2.1)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_handlers_exit_code_is_no_refusal() -> None:
    clock, spawner = FakeClock(), FakeSpawner()
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    spawner.children[0].started = True
    spawner.children[0].end(REFUSED)
    await clock.advance(1.1)
    assert len(spawner.children) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


SAYS_AND_EXITS = """
import os, sys
fd = int(sys.argv[sys.argv.index("--parent-fd") + 1])
if "starts" in sys.argv:
    os.write(fd, b"r")
sys.exit(2 if os.read(fd, 1) == b"s" else 3)
"""


@pytest.mark.parametrize("word", ["starts", "refuses"])
async def test_process_reports_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    (tmp_path / "beneath.py").write_text(SAYS_AND_EXITS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = await spawn_beneath((word,))
    child.stop()
    assert await child.wait() == REFUSED
    assert child.started == (word == "starts")
    child.stop()  # A late notification is no error.


async def test_stop_is_forwarded_to_the_children_and_awaited() -> None:
    clock, spawner = FakeClock(), FakeSpawner(obeys=False)
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    running.cancel()
    await clock.advance(4)
    (child,) = spawner.children
    assert (child.asked, child.killed, running.done()) == (True, False, False)
    child.end(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not child.killed


async def test_a_child_that_does_not_stop_is_killed() -> None:
    clock, spawner = FakeClock(), FakeSpawner(obeys=False)
    running = asyncio.create_task(Supervised("worker", (), grace=5, spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    running.cancel()
    await clock.advance(5.1)
    assert spawner.children[0].killed
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_child_that_refuses_to_start_stops_the_whole_pool() -> None:
    clock, spawner = FakeClock(), FakeSpawner()
    workers = [Supervised(f"worker {n}", (), grace=5, spawn=spawner.spawn, clock=clock) for n in (1, 2)]
    running = asyncio.create_task(WorkerPool("pool", workers, grace=10, clock=clock).run())
    await clock.settle()
    spawner.children[0].end(REFUSED)
    with pytest.raises(StartError):
        await running
    assert spawner.children[1].asked


class Parent:
    """The parent's end of the connection to a child, and the child's reactions."""

    def __init__(self) -> None:
        self._child, self._end = socket.socketpair()
        self.child_end = self._child.fileno()
        self.stopped = asyncio.Event()
        self.exited = threading.Event()

    def watch(self, limit: float = 60) -> None:
        watch_parent(self.child_end, self.stopped.set, limit=limit, exit_now=lambda _: self.exited.set())

    def ask(self) -> None:
        self._end.send(b"s")

    def die(self) -> None:
        self._end.close()

    def close(self) -> None:
        self._child.close()


async def until_stopped(parent: Parent) -> None:
    async with asyncio.timeout(10):
        await parent.stopped.wait()


async def test_child_stops_on_request_and_exits_if_its_parent_dies_meanwhile() -> None:
    parent = Parent()
    parent.watch()
    parent.ask()
    await until_stopped(parent)
    assert not parent.exited.is_set()
    parent.die()
    assert await asyncio.to_thread(parent.exited.wait, 10)
    parent.close()


async def test_child_of_a_dead_parent_stops_or_exits_after_a_time_limit() -> None:
    parent = Parent()
    parent.watch(limit=0)
    parent.die()
    await until_stopped(parent)
    assert await asyncio.to_thread(parent.exited.wait, 10)
    parent.close()


async def test_child_stops_when_its_parent_dies_without_reading_the_notification() -> None:
    parent = Parent()
    parent.watch(limit=0)
    notify_parent(parent.child_end)
    parent.die()
    await until_stopped(parent)
    assert await asyncio.to_thread(parent.exited.wait, 10)
    notify_parent(parent.child_end)
    parent.close()
