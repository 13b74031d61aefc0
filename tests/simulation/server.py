"""The server that all simulated processes share: the memory queue, and what can happen to a server."""

import asyncio
from collections.abc import Callable, Collection
from typing import Literal

from infra.mq import Registry, Subscription, SubscriptionStats
from infra.mq.drivers.memory import MemoryQueue
from tests.simulation.listeners import FORMERLY
from tests.simulation.sealing import SimulatedClock

Fact = tuple[str, str]
"""A subscription, or nothing for broadcasts, and one of its events."""


class Server:
    """One memory queue after another: `flush` makes it forget everything, its workers and their claims included."""

    def __init__(self, clock: SimulatedClock, *, lease: float, dedupe_window: float) -> None:
        self.era = 0
        """How often it has forgotten everything."""

        self.on_retired: Callable[[str], None] = lambda _: None
        """Called with the name of each subscription that is removed, when it is."""

        self._clock = clock
        self._lease = lease
        self._dedupe_window = dedupe_window
        self._facts: dict[Fact, float] = {}
        self._lost: set[Fact] = set()
        self.complete = asyncio.Event()
        """Set while nothing that it has forgotten is still to be declared again."""

        self.queue = self._new_queue()

    async def open(self) -> None:
        """Begin."""
        await self.queue.open()

    async def flush(self, lost: Collection[Fact]) -> None:
        """Forget everything; `lost` is what processes must declare again."""
        forgotten, self.queue = self.queue, self._new_queue()
        self.era += 1
        self._lost.update(lost)
        self.complete.clear()
        self._facts.clear()
        await self.queue.open()
        await forgotten.close()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        """Declare, and return since when, by the clock's `monotonic`, all of it has been declared."""
        await self.queue.declare(subscriptions, broadcasts)
        now = self._clock.monotonic()
        facts = facts_of(subscriptions, broadcasts)
        self._lost -= facts
        if not self._lost:
            self.complete.set()
        return max([self._facts.setdefault(it, now) for it in facts], default=now)

    async def retire(
        self, name: str, *, event: str | None = None, backlog: Literal["refuse", "discard", "dead"] = "refuse"
    ) -> int:
        """Remove a subscription, or one event of it."""
        retired = await self.queue.retire(name, event=event, backlog=backlog)
        gone = FORMERLY.get(name, name)
        self._facts = {it: since for it, since in self._facts.items() if it[0] != gone or event not in {None, it[1]}}
        self.on_retired(name)
        return retired

    async def registry(self) -> Registry:
        """Return what is declared now."""
        return await self.queue.registry()

    async def stats(self) -> list[SubscriptionStats]:
        """Return what every subscription holds."""
        return await self.queue.stats()

    async def warnings(self) -> list[str]:
        """Return what keeps it from doing well."""
        return await self.queue.warnings()

    @property
    def lost(self) -> list[Fact]:
        """What was declared, was forgotten, and has not been declared again."""
        return sorted(self._lost)

    @property
    def known_since(self) -> float:
        """When, by the clock's `monotonic`, the latest declaration that told something new was made."""
        return max(self._facts.values(), default=self._clock.monotonic())

    def _new_queue(self) -> MemoryQueue:
        return MemoryQueue(clock=self._clock, lease=self._lease, dedupe_window=self._dedupe_window)


def facts_of(subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> set[Fact]:
    """Return what a declaration says, by the present names of subscriptions."""
    facts = {(FORMERLY.get(each.name, each.name), event) for each in subscriptions for event in each.events}
    return facts | {("", event) for event in broadcasts}
