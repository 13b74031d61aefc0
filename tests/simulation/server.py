"""The queue server that all simulated processes share: a memory queue that can lose all its data."""

import asyncio
from collections.abc import Callable, Collection

from infra.mq import BacklogPolicy, Registry, Subscription, SubscriptionStats
from infra.mq.drivers.memory import MemoryQueue
from tests.simulation.listeners import FORMER_NAMES
from tests.simulation.sealing import SimulatedClock

DeclaredEvent = tuple[str, str]
"""The name of a subscription, or "" for broadcasts, and one of its events."""


class Server:
    """A memory queue that `flush` replaces by an empty one, without the workers and their claims."""

    def __init__(self, clock: SimulatedClock, *, lease: float, dedupe_window: float) -> None:
        self.era = 0
        """The number of flushes."""

        self.on_retired: Callable[[str], None] = lambda _: None
        """Called with the name of each subscription that is retired."""

        self._clock = clock
        self._lease = lease
        self._dedupe_window = dedupe_window
        self._declared_events: dict[DeclaredEvent, float] = {}
        self._lost: set[DeclaredEvent] = set()
        self.complete = asyncio.Event()
        """Set while all declarations that were lost in a flush have been repeated."""

        self.queue = self._new_queue()

    async def open(self) -> None:
        """Open the queue."""
        await self.queue.open()

    async def flush(self, lost: Collection[DeclaredEvent]) -> None:
        """Lose all data; `lost` are the events that processes must declare again."""
        forgotten, self.queue = self.queue, self._new_queue()
        self.era += 1
        self._lost.update(lost)
        self.complete.clear()
        self._declared_events.clear()
        await self.queue.open()
        await forgotten.close()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        """Declare, and return the monotonic time since which all these events have been declared."""
        await self.queue.declare(subscriptions, broadcasts)
        now = self._clock.monotonic()
        declared_events = declared_events_of(subscriptions, broadcasts)
        self._lost -= declared_events
        if not self._lost:
            self.complete.set()
        return max([self._declared_events.setdefault(it, now) for it in declared_events], default=now)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        """Retire a subscription, or one event of it; return the number of removed deliveries."""
        retired = await self.queue.retire(name, event=event, backlog=backlog)
        present_name = FORMER_NAMES.get(name, name)
        self._declared_events = {
            it: since
            for it, since in self._declared_events.items()
            if it[0] != present_name or event not in {None, it[1]}
        }
        self.on_retired(name)
        return retired

    async def registry(self) -> Registry:
        """Return the present registry."""
        return await self.queue.registry()

    async def stats(self) -> list[SubscriptionStats]:
        """Return the statistics of all subscriptions."""
        return await self.queue.stats()

    async def warnings(self) -> list[str]:
        """Return the warnings of the queue."""
        return await self.queue.warnings()

    @property
    def lost(self) -> list[DeclaredEvent]:
        """The declared events that a flush has lost and no process has declared again."""
        return sorted(self._lost)

    @property
    def known_since(self) -> float:
        """The monotonic time of the latest declaration that added an event."""
        return max(self._declared_events.values(), default=self._clock.monotonic())

    def _new_queue(self) -> MemoryQueue:
        return MemoryQueue(clock=self._clock, lease=self._lease, dedupe_window=self._dedupe_window)


def declared_events_of(subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> set[DeclaredEvent]:
    """Return the declared events, under the present names of their subscriptions."""
    declared_events = {
        (FORMER_NAMES.get(each.name, each.name), event) for each in subscriptions for event in each.events
    }
    return declared_events | {("", event) for event in broadcasts}
