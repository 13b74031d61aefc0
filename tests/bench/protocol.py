"""What a measured process is told, and what it answers: one JSON argument, and JSON lines on its standard output.

The processes of peers import this module in environments of their own, so it uses the standard library alone. All
times are those of `time.perf_counter`, which the processes of one machine share on Linux.
"""

import asyncio
import itertools
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT_EVERY = 0.05
"""Seconds between two lines of a worker that makes progress."""

TASKS = 100
"""Tasks that publish concurrently in the mode `together`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which events and listeners there are; peers know only the default."""

    types: int = 1
    """Event types, each with the same number of listeners."""

    fan_out: int = 1
    """Listeners of each event type."""

    keys: int = 0
    """Ordering keys; 0 for an unordered listener."""

    payload: int = 0
    """Bytes of text in each event beyond its usual fields."""

    delayed: bool = False
    """Whether all events become due at one moment, when the backlog is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process of a measurement."""

    role: str
    """`prepare` (create tables), `publish`, `work`, `pace` (publish at `rate`, each event with its time), or `loop`
    (publish and work in one process)."""

    url: str
    """The server or file."""

    count: int
    """Events to publish; or deliveries to handle, in all workers together."""

    mode: str = "many"
    """How `publish` publishes: `one` by one, `many` at once, or from `TASKS` tasks `together`."""

    rate: float = 200.0
    shape: Shape = field(default_factory=Shape)
    broker: str | None = None
    """The queue's server beside the database of `url`, with an outbox."""

    wait: bool = False
    """Whether a worker answers when it is ready, and waits for a line on its standard input before it works."""

    def text(self) -> str:
        """Return it as one argument."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Job":
        """Return the job of an argument."""
        values = json.loads(text)
        return cls(**{**values, "shape": Shape(**values["shape"])})


def job() -> Job:
    """Return the job of this process."""
    return Job.parse(sys.argv[1])


def answer(**values: object) -> None:
    """Write one line to the runner."""
    os.write(1, json.dumps(values).encode() + b"\n")


def cpu() -> float:
    """Return the CPU seconds of this process so far."""
    return time.process_time()


def peak_memory() -> float:
    """Return the peak of resident memory in MB.

    It is read from /proc where there is one, because `getrusage` inherits the peak of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Meter:
    """Counts the handled events of a worker, and reports them to the runner."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._numbers = itertools.count(1)  # its `next` is atomic: some workers handle in threads
        self._handled = 0
        self._first = self._last = self._cpu = 0.0
        self._latencies: list[float] = []
        threading.Thread(target=self._report_often, daemon=True).start()

    def handled(self, sent: float = 0.0) -> None:
        """Count one event; `sent` is the time of its publish, if its latency is measured."""
        now = time.perf_counter()
        number = next(self._numbers)
        if number == 1:
            self._cpu = cpu()
            self._first = now
        if sent:
            self._latencies.append(now - sent)
        self._last = now
        self._handled = number
        if number == self._expected:
            self._report(number, latencies=self._latencies)

    def _report_often(self) -> None:
        reported = 0
        while True:
            time.sleep(REPORT_EVERY)
            if reported != (reported := self._handled):
                self._report(reported)

    def _report(self, handled: int, **more: object) -> None:
        answer(
            handled=handled,
            first=self._first,
            last=self._last,
            cpu=cpu() - self._cpu,
            memory=peak_memory(),
            **more,
        )


@dataclass(slots=True)
class Published:
    """The figures of a process that publishes, from its first event to its last."""

    count: int
    began: float = field(default_factory=time.perf_counter)
    cpu_before: float = field(default_factory=cpu)

    def report(self) -> None:
        """Report to the runner."""
        seconds = time.perf_counter() - self.began
        answer(published=self.count, seconds=seconds, cpu=cpu() - self.cpu_before, memory=peak_memory())


def payload(sent: float = 0.0, n: int = 0) -> dict[str, Any]:
    """Return the event of the usual size that peers publish: about 120 bytes of msgpack, 150 of JSON."""
    return {
        "user_id": "0193f0de-5bcd-7b3e-8000-0123456789ab",
        "email": "ada@example.com",
        "name": "Ada Lovelace",
        "created_at": "2026-01-01T00:00:00+00:00",
        "n": n,
        "sent": sent,
    }


def publish_one_by_one(work: Job, publish: Callable[[dict[str, Any]], object]) -> None:
    """Carry out `publish` in the mode `one`, or `pace`, by a blocking call."""
    if work.role == "pace":
        began = time.perf_counter()
        for n in range(work.count):
            time.sleep(max(0.0, began + n / work.rate - time.perf_counter()))
            publish(payload(time.perf_counter(), n))
        return
    events = [payload(n=n) for n in range(work.count)]
    published = Published(work.count)
    for event in events:
        publish(event)
    published.report()


async def publish_at_rate(work: Job, publish: Callable[[float, int], Awaitable[object]]) -> None:
    """Call `publish` with the time and a number, at the rate of the job."""
    began = time.perf_counter()
    for n in range(work.count):
        await asyncio.sleep(max(0.0, began + n / work.rate - time.perf_counter()))
        await publish(time.perf_counter(), n)


async def publish_async(
    work: Job,
    publish: Callable[[dict[str, Any]], Awaitable[object]],
    publish_many: Callable[[list[dict[str, Any]]], Awaitable[object]] | None = None,
    at_once: int = 100,
) -> None:
    """Carry out `publish` or `pace` by async calls; without `publish_many` the mode `many` is `together`."""
    if work.role == "pace":
        await publish_at_rate(work, lambda sent, n: publish(payload(sent, n)))
        return
    events = [payload(n=n) for n in range(work.count)]

    async def one_by_one(share: list[dict[str, Any]]) -> None:
        for event in share:
            await publish(event)

    published = Published(work.count)
    if work.mode == "one":
        await one_by_one(events)
    elif work.mode == "many" and publish_many is not None:
        for at in range(0, work.count, at_once):
            await publish_many(events[at : at + at_once])
    else:
        await asyncio.gather(*(one_by_one(events[at::TASKS]) for at in range(TASKS)))
    published.report()
