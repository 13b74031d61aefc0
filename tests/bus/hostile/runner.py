"""A runner of scripts of hostile acts on a bus, whose worker is started again whenever a handler exits."""

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bus import Bus, BusOptions, Delivery, Retry
from infra.clock import FakeClock
from infra.mq import ClaimLimits, Consumer, MessageQueue, WorkerInfo
from tests.bus.hostile.acts import IN_LOOP, IN_THREAD, Act, Cost, leaked

MAX_ATTEMPTS = 3
RETRY = Retry(max_attempts=MAX_ATTEMPTS, min_delay=0.5, factor=1, jitter="none")
TIMEOUT = 2.0
STEP = 0.5
MAX_STEPS = 2_000


@dataclass(frozen=True)
class Attack:
    """The event for which each listener performs the next act of its script."""

    n: int

    def ordering_key(self) -> str:
        return f"key {self.n % 2}"


Scripts = Mapping[str, Sequence[Sequence[str]]]
"""For each listener and event: the acts of the successive calls. Calls after the last act succeed."""


@dataclass
class Record:
    """Counts of a listener's calls for one event."""

    calls: int = 0
    spent: int = 0
    """Calls that advanced the script without a failure."""

    exits: int = 0
    done: bool = False


@dataclass
class ScriptRunner:
    """Runs scripts on a queue until every delivery has ended."""

    queue: MessageQueue
    clock: FakeClock
    scripts: Scripts
    pace: float
    """Real seconds between two steps of the test's clock: a server needs time to answer, the memory driver none."""

    records: dict[tuple[str, int], Record] = field(default_factory=lambda: defaultdict(Record))
    order: list[tuple[str, int]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    exits: int = 0
    _buses: list[Bus] = field(default_factory=list)

    async def run(self) -> None:
        """Publish the events and run workers until all deliveries have ended."""
        bus = self._bus()
        consumers: list[Consumer] = []
        join = self.queue.consumer

        async def recorded(info: WorkerInfo, limits: ClaimLimits) -> Consumer:
            consumers.append(await join(info, limits))
            return consumers[-1]

        self.queue.consumer = recorded  # type: ignore[method-assign]  # records the consumers, whose leases the clock must not outrun
        await self._while_time_passes(bus.start(), consumers)
        await self._while_time_passes(bus.publish_many([Attack(n) for n in range(self.events)]), consumers)
        worker = asyncio.create_task(self._work(bus))
        await self._while_time_passes(self._until_over(worker), consumers)
        assert not worker.done(), "the worker ended by itself"
        assert all(each.failures_total == 0 for each in bus.background_tasks), bus.background_tasks
        worker.cancel()
        await self._while_time_passes(asyncio.wait([worker]), consumers)
        await bus.close()

    @property
    def events(self) -> int:
        return max(len(each) for each in self.scripts.values())

    def _threads_run(self) -> bool:
        return any(bus.metrics.listeners["thread"].running for bus in self._buses if bus.metrics.listeners)

    def _bus(self) -> Bus:
        options = BusOptions(grace=1, renew_every=0.01, recover_every=0.5, concurrency=3, timeout=TIMEOUT)
        bus = Bus(self.queue, clock=self.clock, options=options, random=Random(1))
        bus.add_async_listener(self._in_loop("loop"), name="loop", retry=RETRY)
        bus.add_async_ordered_listener(self._in_loop("ordered"), name="ordered", retry=RETRY)
        bus.add_async_listener(self._in_thread, name="thread", retry=RETRY)
        self._buses.append(bus)
        return bus

    async def _work(self, bus: Bus) -> None:
        while True:
            try:
                await bus.run()
            except SystemExit:
                # A second process, with its own bus on the same queue.
                self.exits += 1
                await bus.close()
                bus = self._bus()
                await bus.start()

    async def _until_over(self, worker: asyncio.Task[None]) -> None:
        while not worker.done():
            stats = await self.queue.stats()
            if not any(it.ready + it.retrying + it.in_flight for it in stats):
                return
            await self.clock.sleep(STEP)

    async def _while_time_passes(self, work: Coroutine[Any, Any, Any], consumers: list[Consumer]) -> None:
        task = asyncio.ensure_future(work)
        for _ in range(MAX_STEPS):
            if task.done():
                break
            await asyncio.sleep(self.pace)
            if self._threads_run():
                await asyncio.sleep(0.001)  # threads do not depend on the test's clock
                continue
            live = [it.valid_until for it in consumers[-1:] if not it.lost]
            if not live or live[0] - self.clock.monotonic() > 4 * STEP:  # the heartbeat must renew first
                await self.clock.advance(STEP)
        assert task.done(), f"not done after {MAX_STEPS} steps: {await self.queue.stats()}"
        task.result()

    def _in_loop(self, name: str) -> Callable[[Attack, Delivery], Coroutine[Any, Any, None]]:
        async def handler(event: Attack, delivery: Delivery) -> None:
            act = self._next(name, event, delivery, IN_LOOP)
            result = act()
            if inspect.isawaitable(result):
                await result
            self._succeeded(name, event)

        return handler

    def _in_thread(self, event: Attack, delivery: Delivery) -> None:
        self._next("thread", event, delivery, IN_THREAD)()
        self._succeeded("thread", event)

    def _next(self, name: str, event: Attack, delivery: Delivery, acts: Mapping[str, tuple[Act, Cost]]) -> Act:
        task = None if name == "thread" else asyncio.current_task()
        if leaked.get() or (task is not None and task.cancelling()):
            self.leaks.append(f"{name} {event.n}")
        record = self.records[name, event.n]
        record.calls += 1
        script = self.scripts[name][event.n] if event.n < len(self.scripts[name]) else ()
        # The bus counts failures; `spent` counts the calls that are no failures.
        position = delivery.attempt - 1 + record.spent
        act, cost = acts[script[position]] if position < len(script) else acts["succeed"]
        record.spent += cost in {Cost.LATER, Cost.CRASH}
        record.exits += cost is Cost.CRASH
        if cost is Cost.DONE:
            self._succeeded(name, event)
        return act

    def _succeeded(self, name: str, event: Attack) -> None:
        record = self.records[name, event.n]
        if not record.done:
            record.done = True
            self.order.append((name, event.n))


def expected(script: Sequence[str], acts: Mapping[str, tuple[Act, Cost]]) -> tuple[bool, int]:
    """Return whether a script without exits ends as a dead letter, and after how many failures."""
    failures = 0
    for name in script:
        match acts[name][1]:
            case Cost.DONE:
                return False, failures
            case Cost.FAILURE:
                failures += 1
                if failures == MAX_ATTEMPTS:
                    return True, failures
            case _:
                pass
    return False, failures
