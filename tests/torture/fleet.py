"""A fleet: the processes of one test on one database and queue, and the test's operations on them."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.mq import DeadLetter, SubscriptionStats
from tests.breakable_proxy import BreakableProxy
from tests.e2e.processes import PATIENCE, POLL, Processes, until
from tests.stacks import Place
from tests.torture.forked import ForkedProcess, ForkedProcesses
from tests.torture.journal import Journal, Line, Reader
from tests.torture.opening import Opened, Plan, opened
from tests.torture.rows import Rows

T = TypeVar("T")

STANDSTILL = 0.1
"""Seconds after SIGSTOP until all threads of a process have stopped; much less than a lease."""

QUICK = {"renew_every": 0.1, "recover_every": 0.1}
"""Intervals much shorter than the defaults, so that tests are short."""

QUICK_QUEUE = {"lease": 2.0}
"""A short lease, which is 20 renewal intervals, because the machine may be busy."""


class Fleet:
    """The processes of one test, which share a database, a queue and a journal."""

    def __init__(self, processes: Processes, forked: ForkedProcesses, folder: Path, place: Place) -> None:
        self._processes = processes
        self._forked = forked
        self._folder = folder
        self.place = place
        self.rows = Rows(place)
        self.gate = folder / "gate"
        self.journal = Reader(folder / "journal.jsonl")
        self._writer = Journal(folder / "journal.jsonl")
        self.plan = Plan(
            place=place,
            journal=str(folder / "journal.jsonl"),
            gate=str(self.gate),
            options=dict(QUICK),
            queue=dict(QUICK_QUEUE),
        )

    def accept(self, key: str, numbers: Iterable[int]) -> None:
        """Record for the checker that events were accepted."""
        for n in numbers:
            self._writer.write("accepted", key=key, n=n)

    def detour(self, proxy: BreakableProxy | None) -> None:
        """Let later processes connect through this proxy; None for direct connections, as the test has."""
        urls = {"redis_url": self.place.redis_url, "db_url": self.place.db_url}
        if proxy is not None:
            urls = {name: url and proxy.instead_of(url) for name, url in urls.items()}
        self.plan = msgspec.structs.replace(self.plan, place=msgspec.structs.replace(self.place, **urls))

    def close(self) -> None:
        """Close the journal and the test's connections."""
        self._writer.close()
        self.rows.close()

    def start(self, *listeners: str, program: str = "worker", **changes: Any) -> ForkedProcess:  # noqa: ANN401 - a plan's
        """Start a program with these listeners; `changes` are the changes of its plan."""
        plan = msgspec.structs.replace(self.plan, listeners=listeners, **changes)
        return self._forked.start(program, plan)

    def started(self, *listeners: str, **changes: Any) -> ForkedProcess:  # noqa: ANN401 - a plan's
        """Start a worker, and return once it is ready."""
        process = self.start(*listeners, **changes)
        self.wait_ready(process)
        return process

    def pair(self, *listeners: str, **changes: Any) -> list[ForkedProcess]:  # noqa: ANN401 - a plan's
        """Start two workers, and return once both are ready."""
        processes = [self.start(*listeners, **changes) for _ in range(2)]
        for each in processes:
            self.wait_ready(each)
        return processes

    def wait_ready(self, process: ForkedProcess) -> Line:
        """Return once a worker is ready."""

        def ready() -> Line | None:
            assert process.running, process.stderr
            return next((each for each in self.journal.of("ready") if each.process == process.number), None)

        line = until(ready, f"{process} is ready")
        assert line is not None
        return line

    def kill(self, process: ForkedProcess) -> float:
        """Record the kill, then kill the process; return the time of the record, in seconds since the epoch."""
        self._writer.write("killing", process=process.number)
        process.kill()
        return self.journal.of("killing")[-1].at

    def pause(self, process: ForkedProcess) -> None:
        """Stop a process with SIGSTOP, and record that once it has stopped."""
        process.pause()
        time.sleep(STANDSTILL)
        self._writer.write("pausing", process=process.number)

    def reconnect(self, process: ForkedProcess, proxy: BreakableProxy) -> None:
        """End a process's partition, and record that it lasted until now."""
        self.cut_off(process)
        proxy.open_up()

    def cut_off(self, process: ForkedProcess) -> None:
        """Record that the results of a process so far may not have been accepted."""
        self._writer.write("cut off", process=process.number)

    def publish(self, events: Sequence[Any], *, listeners: Sequence[str] = ()) -> None:
        """Publish in this process, with these listeners, and record that the events were accepted."""

        async def work(site: Opened) -> None:
            await site.bus.publish_many(events)

        self.run(work, listeners)
        for key, n in dict.fromkeys((event.key, event.n) for event in events):
            self.accept(key, [n])

    def run(
        self,
        work: Callable[[Opened], Awaitable[T]],
        listeners: Sequence[str] = (),
        **changes: Any,  # noqa: ANN401 - a plan's
    ) -> T:
        """Run `work` in this process with a started bus; `changes` are the changes of its plan."""

        async def inside() -> T:
            async with opened(msgspec.structs.replace(self.plan, listeners=tuple(listeners), **changes)) as site:
                return await work(site)

        return asyncio.run(inside())

    def stats(self) -> dict[str, SubscriptionStats]:
        """Return the statistics of the queue, by listener."""
        return {each.name: each for each in self.rows.ask(lambda mq: mq.stats())}

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters."""
        return self.rows.ask(lambda mq: mq.dead_letters())

    def runs(self, listener: str, kind: str = "start") -> list[Line]:
        """Return the lines of a listener of one kind."""
        return [each for each in self.journal.lines() if (each.kind, each.listener) == (kind, listener)]

    def command(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run `beneath` on this database, and return its output, parsed with `--json`."""
        process = self._processes.python("-m", "beneath", *arguments, cwd=self._folder, env=self.place.environment)
        assert process.wait() == 0, process.stderr
        return json.loads(process.stdout) if "--json" in arguments else process.stdout

    def pending(self) -> int:
        """Return the number of pending deliveries and outbox rows."""
        [(rows,)] = self.rows.fetch("SELECT count(*) FROM beneath_outbox")
        return int(rows) + sum(it.ready + it.in_flight + it.retrying + it.scheduled for it in self.stats().values())

    def wait_empty(self, patience: float = PATIENCE) -> None:
        """Return once no listener has pending deliveries, and the outbox is empty.

        Raises:
            AssertionError: their number has not decreased for `patience` seconds.
        """
        least, deadline = math.inf, math.inf
        while left := self.pending():
            if left < least:
                least, deadline = left, time.monotonic() + patience
            assert time.monotonic() < deadline, f"{left} deliveries and rows are pending, as {patience:g} s before"
            time.sleep(POLL)

    def stop(self, *processes: ForkedProcess) -> None:
        """Stop processes with SIGTERM, and check that they exit with code 0."""
        for each in processes:
            each.terminate()
        for each in processes:
            assert each.wait() == 0, each.stderr
