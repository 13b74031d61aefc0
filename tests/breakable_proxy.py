"""A proxy to a server that breaks connections on request. It runs in a thread, for tests that are not coroutines."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Self

from tests.servers import free_port

FAULTS = ("mute", "cut", "half", "hole")

LATE_PATIENCE = 1.0
"""Seconds to wait for the response to a request that was delivered late."""


class BreakableProxy:
    """A proxy that forwards all data until a connection is told to fail. The faults:

    - mute: the next request reaches the server; the connection is closed instead of the response.
    - cut: the connection is reset at once.
    - half: only half of the next response arrives, then the connection is closed.
    - hole: the next request reaches the server; the response is dropped, and the connection stays open.
    - late: the connection is reset at the next request, which reaches the server at the call of `deliver_late`.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self._target = port
        self._random = Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = free_port()
        self._reachable = True
        self._dark = False
        self._moving = asyncio.Event()
        self._moving.set()
        self._ends = _Ends()
        self._unheard: list[asyncio.StreamWriter] = []
        self.done: Counter[str] = Counter()
        """Number of failed connections by fault."""

        self.opened = 0
        """Number of connections so far."""

    def instead_of(self, url: str) -> str:
        """Return the server's URL with this proxy's address."""
        return url.replace(f":{self._target}/", f":{self.port}/")

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fail(self, fault: str) -> None:
        """Let any one connection fail at its next opportunity."""
        self._call(lambda: self._break_one(fault))

    def fail_everywhere(self, fault: str) -> None:
        """Let every connection fail at its next opportunity, until `heal`."""
        self._call(lambda: self._break_all(fault))

    def heal(self) -> None:
        """Cancel the faults of connections that have not failed yet."""
        self._call(self._mend_all)

    def deliver_late(self) -> int:
        """Deliver the requests that were held back; return their number once the server has responded."""
        return asyncio.run_coroutine_threadsafe(self._deliver_late(), self._loop).result()

    def close_off(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._call(lambda: self._shut(reachable=False))

    def black_out(self) -> None:
        """Drop all data in both directions, including the end of connections; new connections get no response."""
        self._call(self._darken)

    def hold_up(self) -> None:
        """Hold all data back, which arrives at the call of `open_up`."""
        self._call(self._moving.clear)

    def keep_ends(self, *, keep: bool = True) -> None:
        """Hide from clients that the server has closed a connection; forward everything else."""
        self._call(lambda: setattr(self._ends, "kept", keep))

    @property
    def ended(self) -> int:
        """Number of connections that the server has closed."""
        return self._ends.count

    def open_up(self) -> None:
        """Forward data again; connections that lost data are reset."""
        self._call(lambda: self._shut(reachable=True))

    def _call(self, work: Callable[[], None]) -> None:
        async def inside() -> None:
            work()

        asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    def _break_one(self, fault: str) -> None:
        if healthy := [each for each in self._pairs if each.fault is None]:
            self._random.choice(sorted(healthy, key=id)).break_by(fault)
            self.done[fault] += 1

    def _break_all(self, fault: str) -> None:
        for pair in [each for each in self._pairs if each.fault is None]:
            pair.break_by(fault)
            self.done[fault] += 1

    def _mend_all(self) -> None:
        for pair in self._pairs:
            if not pair.asked:
                pair.fault = None

    async def _deliver_late(self) -> int:
        kept = [pair for pair in self._pairs if pair.fault == "late" and pair.asked]
        await asyncio.gather(*(pair.deliver() for pair in kept))
        return len(kept)

    def _shut(self, *, reachable: bool) -> None:
        self._reachable = reachable
        if not reachable or self._dark:
            for pair in self._pairs:
                pair.abort()
        self._dark = False
        self._moving.set()
        for writer in self._unheard:
            writer.transport.abort()
        self._unheard.clear()

    def _darken(self) -> None:
        self._dark = True
        for pair in self._pairs:
            pair.dark = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._reachable:
            writer.transport.abort()
            return
        if self._dark:
            self._unheard.append(writer)
            return
        await self._moving.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, up_writer, self._moving, self._ends)
        self.opened += 1
        self._pairs.add(pair)
        for task in (
            asyncio.create_task(pair.forth(reader)),
            asyncio.create_task(pair.back(up_reader)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._pairs.discard(pair))

    async def _end(self) -> None:
        self._server.close()
        self._shut(reachable=False)
        while self._tasks:
            await asyncio.wait(list(self._tasks))


class _Ends:
    """Whether the end of a connection is hidden from its client, and how many the server has closed."""

    def __init__(self) -> None:
        self.kept = False
        self.count = 0


class _Pair:
    """A client's connection and its counterpart to the server."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, moving: asyncio.Event, ends: _Ends
    ) -> None:
        self._client = client
        self._server = server
        self._moving = moving
        self._ends = ends
        self._aborted = asyncio.Event()
        self.asked = False
        """Whether a request arrived after the fault began."""

        self._release = asyncio.Event()
        self._answered = asyncio.Event()
        self.fault: str | None = None
        self.dark = False

    def break_by(self, fault: str) -> None:
        """Let the connection fail from now on."""
        self.fault = fault
        if fault == "cut":
            self.abort()

    def abort(self) -> None:
        """Reset both sides."""
        self._aborted.set()
        self._release.set()
        for writer in (self._client, self._server):
            writer.transport.abort()

    async def deliver(self) -> None:
        """Deliver the request that was held back; return after the response or `LATE_PATIENCE`."""
        self._release.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), LATE_PATIENCE)
        self.abort()

    async def forth(self, reader: asyncio.StreamReader) -> None:
        """Forward requests."""
        try:
            while data := await reader.read(1 << 16):
                await self._moving.wait()
                if self.dark:
                    continue
                self.asked = self.fault is not None
                if self.fault == "late":
                    self._client.transport.abort()
                    await self._release.wait()
                self._server.write(data)
                await self._server.drain()
        except OSError:
            pass
        finally:
            await self._end_arrives()
            self.abort()

    async def back(self, reader: asyncio.StreamReader) -> None:
        """Forward responses."""
        try:
            while data := await reader.read(1 << 16):
                await self._moving.wait()
                if self._release.is_set():
                    self._answered.set()
                    continue
                # Data sent before the fault began still arrives.
                if self.dark or (self.asked and self.fault == "hole"):
                    continue
                if self.asked and self.fault == "half":
                    self._client.write(data[: len(data) // 2])
                    await self._client.drain()
                    self._client.close()
                    return
                if self.asked and self.fault == "mute":
                    break
                self._client.write(data)
                await self._client.drain()
        except OSError:
            pass
        finally:
            self._ends.count += 1
            await self._end_arrives(kept=self._ends.kept)
            if self.fault != "half":
                self._client.transport.abort()
            self._server.transport.abort()

    async def _end_arrives(self, *, kept: bool = False) -> None:
        await self._moving.wait()
        if self.dark or kept or (self.fault == "late" and self.asked):
            await self._aborted.wait()
