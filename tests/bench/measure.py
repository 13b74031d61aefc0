"""The measurements that all drivers share: events, handlers, and rates."""

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TypeVar
from uuid import UUID

from bus import Bus
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue

SOME_ID = UUID("0193f0de-5bcd-7b3e-8000-0123456789ab")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An event of the usual size: about 120 bytes of msgpack."""

    user_id: UUID = SOME_ID
    email: str = "ada@example.com"
    name: str = "Ada Lovelace"
    created_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The same, with an ordering key."""

    key: str
    email: str = "ada@example.com"
    name: str = "Ada Lovelace"
    created_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    n: int = 0

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """An event without a durable subscription."""

    n: int = 0


class Bench(Protocol):
    """A measured driver, with the bare client loops to compare it with."""

    name: str

    def opened(self) -> AbstractAsyncContextManager[tuple[MessageQueue, Database | None]]:
        """Open an empty queue."""
        ...

    async def bare_consume(self, count: int) -> float | None:
        """Return seconds for fetching by 100, decoding, awaiting a handler and deleting by 100, of `count` messages."""
        ...

    async def bare_publish_many(self, count: int) -> float | None:
        """Return seconds for adding `count` messages by 100."""
        ...

    async def bare_publish(self, count: int) -> float | None:
        """Return seconds for adding `count` messages one by one, each durable before the next."""
        ...

    async def bare_publish_together(self, count: int) -> float | None:
        """Return seconds for adding `count` messages from 100 tasks, coalesced."""
        ...

    async def bare_latencies(self, count: int, rate: float) -> tuple[float, float] | None:
        """Return what `latencies` does, of one task that adds and another that waits, fetches and awaits a handler."""
        ...


@dataclass(slots=True)
class Counter:
    """A handler that counts events, and signals when the expected number has arrived."""

    enough: int
    seen: int = 0
    began: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self) -> None:
        if self.seen == 0:
            self.began = time.perf_counter()
        self.seen += 1
        if self.seen == self.enough:
            self.done.set()

    async def seconds(self) -> float:
        """Return the seconds from the first event to the last."""
        await self.done.wait()
        return time.perf_counter() - self.began


@asynccontextmanager
async def started(
    bench: Bench, signed: Counter | None = None, moved: Counter | None = None
) -> AsyncIterator[tuple[Bus, MessageQueue]]:
    """Open an empty queue with one unordered and one ordered listener on it."""
    async with bench.opened() as (mq, db):
        bus = Bus(mq, db, clock=SystemClock())

        async def on_signed(event: Signed) -> None:
            if signed is not None:
                signed.count()

        async def on_moved(event: Moved) -> None:
            if moved is not None:
                moved.count()

        async def on_unwanted(event: Unwanted) -> None: ...

        bus.add_async_listener(on_signed, name="signed")
        bus.add_async_ordered_listener(on_moved, name="moved")
        bus.add_sync_listener(on_unwanted)
        await bus.start()
        try:
            yield bus, mq
        finally:
            await bus.close()


@asynccontextmanager
async def working(bus: Bus) -> AsyncIterator[None]:
    """Run the worker during the block."""
    worker = asyncio.create_task(bus.run())
    try:
        yield
    finally:
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


async def handled(bench: Bench, count: int) -> float:
    """Return seconds for handling a backlog of `count` with one listener."""
    counter = Counter(count)
    async with started(bench, signed=counter) as (bus, _):
        for at in range(0, count, 100):
            await bus.publish_many([Signed(n=n) for n in range(at, at + 100)])
        gc.collect()
        async with working(bus):
            return await counter.seconds()


async def handled_in_order(bench: Bench, keys: int, each: int) -> float:
    """Return seconds for handling `each` events of `keys` keys."""
    counter = Counter(keys * each)
    async with started(bench, moved=counter) as (bus, _):
        events = [Moved(key=f"key-{key}", n=n) for n in range(each) for key in range(keys)]
        for at in range(0, len(events), 100):
            await bus.publish_many(events[at : at + 100])
        gc.collect()
        async with working(bus):
            return await counter.seconds()


async def published_many(bench: Bench, count: int) -> float:
    """Return seconds for `publish_many` of 100 at a time."""
    async with started(bench) as (bus, _):
        batches = [[Signed(n=n) for n in range(at, at + 100)] for at in range(0, count, 100)]
        return await timed(lambda: one_after_the_other(bus.publish_many, batches))


async def published(bench: Bench, count: int) -> float:
    """Return seconds for one `publish` after the other."""
    async with started(bench) as (bus, _):
        events = [Signed(n=n) for n in range(count)]
        return await timed(lambda: one_after_the_other(bus.publish, events))


async def published_together(bench: Bench, count: int) -> float:
    """Return seconds for 100 tasks that each publish their share, one after the other."""
    async with started(bench) as (bus, _):
        shares = [[Signed(n=n) for n in range(at, count, 100)] for at in range(100)]
        return await timed(lambda: all_together([one_after_the_other(bus.publish, share) for share in shares]))


async def sync_overhead(bench: Bench, count: int) -> tuple[float, float]:
    """Return seconds per publish to one sync listener without other subscriptions, and per bare await of it."""

    async def bare(event: Unwanted) -> None: ...

    async with started(bench) as (bus, _):
        event = Unwanted()

        async def publishing() -> None:
            for _ in range(count):
                await bus.publish(event)

        async def awaiting() -> None:
            for _ in range(count):
                await bare(event)

        await publishing()
        return await timed(publishing) / count, await timed(awaiting) / count


async def latencies(bench: Bench, count: int, rate: float) -> tuple[float, float]:
    """Return the median and the 99th percentile, in seconds, from publish to handler at `rate` events a second."""
    taken: list[float] = []
    sent: dict[int, float] = {}
    async with bench.opened() as (mq, db):
        bus = Bus(mq, db, clock=SystemClock())
        enough = asyncio.Event()

        async def on_signed(event: Signed) -> None:
            taken.append(time.perf_counter() - sent[event.n])
            if len(taken) == count:
                enough.set()

        bus.add_async_listener(on_signed, name="signed")
        await bus.start()
        async with working(bus):
            began = time.perf_counter()
            for n in range(count):
                await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
                sent[n] = time.perf_counter()
                await bus.publish(Signed(n=n))
            await enough.wait()
        await bus.close()
    return percentiles(taken)


def percentiles(taken: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(taken)
    return statistics.median(ordered), ordered[int(len(ordered) * 0.99)]


async def idle_cpu(bench: Bench, seconds: float) -> float:
    """Return the share of a core that a worker without work uses."""
    async with started(bench) as (bus, _), working(bus):
        await asyncio.sleep(1.0)
        before = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - before) / seconds


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds `work` takes."""
    gc.collect()
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


T = TypeVar("T")


async def one_after_the_other(call: Callable[[T], Awaitable[object]], arguments: list[T]) -> None:
    """Await `call` with each of `arguments`."""
    for each in arguments:
        await call(each)


async def all_together(work: list[Awaitable[object]]) -> None:
    """Await all of it at once."""
    await asyncio.gather(*work)
