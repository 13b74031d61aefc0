"""The common base of the backlogs of ordered and unordered subscriptions."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto

from infra.mq.drivers.memory.store import PendingDelivery, Store
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.types import Claim, ClaimedDelivery, Message, Outcome, Settlement


class ByteBudget:
    """The number of bytes of message bodies that one fetch may still return."""

    __slots__ = ("_left", "_used")

    def __init__(self, size: int) -> None:
        self._left = size
        self._used = False

    def take(self, size: int) -> bool:
        """Subtract the `size` bytes of a claim; return False if too few are left. The first claim costs nothing."""
        if not self._used:
            self._used = True
        elif size > self._left:
            return False
        else:
            self._left -= size
        return True


class State(Enum):
    """The state of a delivery or a mailbox."""

    IDLE = auto()
    """A mailbox without deliveries."""

    READY = auto()
    WAITING = auto()
    """Not due yet."""

    OWNED = auto()
    PARKED = auto()
    BLOCKED = auto()
    REMOVED = auto()


@dataclass(slots=True)
class Counts:
    """The number of deliveries by state."""

    ready: int = 0
    retrying: int = 0
    in_flight: int = 0
    parked: int = 0
    blocked: int = 0


class Backlog(ABC):
    """All unfinished deliveries of one subscription."""

    ordered: bool

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.events: set[str] = set()
        self.paused = False
        self.waiters: set[asyncio.Event] = set()
        self.store = store

    @abstractmethod
    def add(self, message: Message) -> None:
        """Add a new delivery, due now."""

    @abstractmethod
    def claim(self, limit: int, worker: MemoryWorker, name: str, budget: ByteBudget) -> list[Claim]:
        """Return up to `limit` claims for `worker`, as many as `budget` allows, with `name` as their subscription."""

    @abstractmethod
    def settle(self, settlement: Settlement, worker: MemoryWorker, now: float) -> bool:
        """Settle a delivery; return False if the settlement is fenced."""

    @abstractmethod
    def isolate(self, claim: Claim, worker: MemoryWorker) -> bool:
        """Mark the claim's first delivery as isolated; return False if the claim is fenced."""

    @abstractmethod
    def keep(self, claim: Claim, worker: MemoryWorker) -> None:
        """Exempt the claim from its release at close, if `worker` owns it."""

    @abstractmethod
    def unpark(self, known: Collection[str]) -> int:
        """Make parked deliveries due whose need is in `known`; return the number of claims that they make."""

    @abstractmethod
    def remove(self, matches: Callable[[Message], bool]) -> list[PendingDelivery]:
        """Remove and return the deliveries whose message matches."""

    @abstractmethod
    def entries(self) -> Collection[PendingDelivery]:
        """Return every delivery."""

    @abstractmethod
    def counts(self) -> Counts:
        """Count the deliveries by state."""

    @abstractmethod
    def blocked_keys(self) -> dict[str, str]:
        """Return the blocked ordering keys, each with its last error."""

    def notify(self) -> None:
        """Wake up the consumers that wait for this subscription."""
        for event in self.waiters:
            event.set()


def delivery_of(entry: PendingDelivery, name: str) -> ClaimedDelivery:
    """Return `entry` as a claim holds it, with `name` as its subscription."""
    message = entry.message
    return ClaimedDelivery(
        id=entry.id,
        subscription=name,
        message_id=message.id,
        event=message.event,
        ordering_key=message.ordering_key,
        body=message.body,
        published_at=message.published_at,
        failures=entry.failures,
        deferrals=entry.deferrals,
        takeovers=entry.takeovers,
        crashes=entry.crashes,
    )


def count_outcome(entry: PendingDelivery, settlement: Settlement) -> None:
    """Update the delivery's counters by the settlement."""
    outcome = settlement.outcome
    if outcome is Outcome.DEFER:
        entry.deferrals += 1
    elif outcome in {Outcome.RETRY, Outcome.BLOCK} or (outcome is Outcome.DEAD and settlement.charge):
        entry.failures += 1
    if settlement.failure is not None:
        entry.failure = settlement.failure
    if outcome is Outcome.PARK:
        entry.needs = settlement.needs or entry.message.event
    entry.isolated = False
