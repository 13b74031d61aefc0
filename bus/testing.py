"""The test kit: a bus with the real codec and policy, the memory driver, and a clock that only tests move.

async with BusKit() as kit:
    service = UserService(kit.bus, db)
    await kit.start()
    await service.create("ada@example.com")
    assert kit.published(UserCreated)
    await kit.drain()               # handles due deliveries, and those that follow from them
    await kit.advance(hours=3)      # fires delays and retries on the way, in order

A test whose handlers fail fails as well, unless it reads `kit.failures`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from types import TracebackType
from typing import Self, TypeVar

from bus.bus import Bus
from bus.options import BusOptions
from bus.outgoing import Outgoing
from bus.worker.lane import Lane
from bus.worker.slot import Slot
from bus.worker.worker import Worker
from infra.clock import FakeClock
from infra.db import Database
from infra.mq import Claim, Consumer, DeadLetter, Settlement
from infra.mq.drivers.memory import MemoryQueue

E = TypeVar("E")

MAX_STEPS = 100_000
"""Deliveries after which `drain()` fails, because listeners publish in a cycle."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One failed attempt."""

    listener: str
    event: str
    error: str
    outcome: str
    traceback: str = field(repr=False)


class UnexpectedFailure(AssertionError):
    """An attempt failed, and the test did not read `BusKit.failures` afterwards."""


@dataclass(slots=True)
class _Running:
    """The worker of a started kit."""

    worker: Worker
    consumer: Consumer
    lanes: dict[str, Lane] = field(default_factory=dict)


class BusKit:
    """A bus, its memory queue and its clock. Handlers run in the test's own task, one at a time, in order."""

    def __init__(
        self,
        *,
        db: Database | None = None,
        clock: FakeClock | None = None,
        options: BusOptions | None = None,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        """`seed` is that of the jitter of retries. If `strict`, failures that the test does not read fail it."""
        self.clock = clock or FakeClock()
        # The kit has no heartbeat that renews the lease.
        self.mq = MemoryQueue(clock=self.clock, lease=math.inf)
        self.bus = Bus(self.mq, db, clock=self.clock, options=options, random=Random(seed))  # noqa: S311 - jitter
        self._strict = strict
        self._failures: list[Failed] = []
        self._read = 0
        """The number of failures that the test has read."""

        self._published: list[object] = []
        self._running: _Running | None = None
        self.bus.observe(self._capture)

    async def __aenter__(self) -> Self:
        await self.mq.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close the bus and its queue.

        Raises:
            ExceptionGroup: attempts failed after the test last read `failures`, the kit is strict, and the test raised
                nothing itself. An error of the test gets a note for each of them instead.
        """
        if self._running is not None:
            await self._running.consumer.close()
        await self.bus.close()
        await self.mq.close()
        unexpected = [_unexpected(each) for each in self._failures[self._read :]] if self._strict else []
        if error is not None:
            for each in unexpected:
                error.add_note(f"before this error, a handler failed: {each}")
        elif unexpected:
            raise ExceptionGroup("handlers failed, and the test did not read `kit.failures`", unexpected)

    async def start(self) -> None:
        """Start the bus; construct every service before."""
        await self.bus.start()
        worker = self.bus.worker()
        self._running = _Running(worker, await worker.join(), worker.lanes())

    def published(self, cls: type[E]) -> list[E]:
        """Return the events of `cls` that were published and not rolled back, oldest first."""
        return [event for event in self._published if isinstance(event, cls)]

    @property
    def all_published(self) -> Sequence[object]:
        """All events that were published and not rolled back, oldest first."""
        return tuple(self._published)

    @property
    def failures(self) -> list[Failed]:
        """Every failed attempt so far, oldest first; those that were read do not fail the test."""
        self._read = len(self._failures)
        return [*self._failures]

    @property
    def consumer(self) -> Consumer:
        """The consumer by which the kit claims and settles; tests replace its methods to simulate failures."""
        return self._require_running().consumer

    async def drain(self) -> int:
        """Handle all due deliveries, also those that their handlers publish; return how many were handled."""
        running = self._require_running()
        wants = {name: lane.capacity for name, lane in running.lanes.items()}
        handled = 0
        while wants and (claims := await running.consumer.fetch(wants, wait=0)):
            for claim in claims:
                handled += await self._handle(running, claim)
            if handled > MAX_STEPS:
                raise AssertionError(
                    f"drain() handled {handled} deliveries, and more are due: do listeners publish in a cycle?"
                )
        return handled

    async def advance(
        self, by: timedelta | None = None, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> int:
        """Move the clock, and handle each delivery at its due time on the way; return how many were handled."""
        span = (by or timedelta()) + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        end = self.clock.time() + span.total_seconds()
        handled = await self.drain()
        while (due := self.mq.next_due()) is not None and due <= end:
            self.clock.move_to(due)
            handled += await self.drain()
        await self.clock.advance(end - self.clock.time())
        return handled + await self.drain()

    async def dead_letters(self) -> list[DeadLetter]:
        """Return all dead letters."""
        return await self.mq.dead_letters()

    async def _handle(self, running: _Running, claim: Claim) -> int:
        lane = running.lanes[claim.subscription]
        settlements: list[Settlement] = []
        await running.worker.executor.run(Slot(lane.listener), claim, lane.metrics, settlements.append)
        await running.consumer.settle(settlements)
        for each in settlements:
            if (failure := each.failure) is not None:
                outcome = each.outcome.name.lower()
                self._failures.append(
                    Failed(claim.subscription, each.delivery.event, failure.error, outcome, failure.traceback)
                )
        return len(settlements)

    def _capture(self, outgoing: Outgoing) -> None:
        self._published.append(outgoing.event)

    def _require_running(self) -> _Running:
        if self._running is None:
            raise AssertionError("call `await kit.start()` once every service is constructed")
        return self._running


def _unexpected(failed: Failed) -> UnexpectedFailure:
    error = UnexpectedFailure(f"{failed.listener} failed on {failed.event} ({failed.outcome}): {failed.error}")
    if failed.traceback:
        error.add_note(failed.traceback)
    return error
