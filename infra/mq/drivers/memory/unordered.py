"""The backlog of an unordered subscription: independent deliveries."""

from collections import deque
from collections.abc import Callable, Collection

from infra.mq.drivers.memory.backlog import Backlog, ByteBudget, Counts, State, count_outcome, delivery_of
from infra.mq.drivers.memory.store import PendingDelivery, Store
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.types import Claim, Message, Outcome, Settlement


class UnorderedDelivery(PendingDelivery):
    """A delivery of an unordered subscription, which is claimed by itself."""

    __slots__ = ("backlog", "fence", "owner", "state", "ticket")

    def __init__(self, id: int, message: Message, backlog: "UnorderedBacklog") -> None:  # noqa: A002  # as in PendingDelivery
        super().__init__(id, message)
        self.backlog = backlog
        self.fence = 0
        self.owner: MemoryWorker | None = None
        self.state = State.READY
        self.ticket = 0

    def fall_due(self) -> None:
        self.backlog.make_ready(self)

    def release(self) -> None:
        self.isolated = False
        self.backlog.make_ready(self)

    def take_over(self) -> int:
        self.charge_death()
        self.backlog.make_ready(self)
        return 1


class UnorderedBacklog(Backlog):
    """Deliveries in the order in which they became due."""

    ordered = False

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, store)
        self._entries: dict[int | str, UnorderedDelivery] = {}
        self._ready: deque[UnorderedDelivery] = deque()
        self._parked: set[UnorderedDelivery] = set()

    def add(self, message: Message) -> None:
        entry = UnorderedDelivery(next(self.store.ids), message, self)
        self._entries[entry.id] = entry
        self._ready.append(entry)
        if self.waiters:
            self.notify()

    def claim(self, limit: int, worker: MemoryWorker, name: str, budget: ByteBudget) -> list[Claim]:
        claims: list[Claim] = []
        ready = self._ready
        while ready and len(claims) < limit:
            entry = ready[0]
            if entry.state is not State.READY:
                ready.popleft()
                continue
            if not budget.take(len(entry.message.body)):
                break
            ready.popleft()
            entry.state = State.OWNED
            entry.owner = worker
            entry.fence += 1
            worker.holding[entry] = None
            claims.append(Claim(subscription=name, deliveries=[delivery_of(entry, name)], fence=entry.fence))
        return claims

    def settle(self, settlement: Settlement, worker: MemoryWorker, now: float) -> bool:
        entry = self._entries.get(settlement.delivery.id)
        outcome = settlement.outcome
        if outcome is Outcome.DONE:
            if entry is not None:
                self._delete(entry)
            return True
        if entry is None or entry.owner is not worker or entry.fence != settlement.claim.fence:
            return False
        count_outcome(entry, settlement)
        if outcome is Outcome.DEAD:
            self._delete(entry)
            self.store.add_dead_letter(entry, self.name)
        elif outcome is Outcome.PARK:
            self._disown(entry)
            entry.state = State.PARKED
            self._parked.add(entry)
        elif settlement.delay > 0:
            self._disown(entry)
            entry.state = State.WAITING
            self.store.agenda.add(now + settlement.delay, entry)
        else:
            self.make_ready(entry)
        return True

    def isolate(self, claim: Claim, worker: MemoryWorker) -> bool:
        entry = self._owned(claim, worker)
        if entry is None:
            return False
        entry.isolated = True
        return True

    def keep(self, claim: Claim, worker: MemoryWorker) -> None:
        entry = self._owned(claim, worker)
        if entry is not None:
            worker.kept.add(entry)

    def unpark(self, known: Collection[str]) -> int:
        found = sorted((it for it in self._parked if it.needs in known), key=lambda it: it.id)
        for entry in found:
            self.make_ready(entry)
        return len(found)

    def remove(self, matches: Callable[[Message], bool]) -> list[PendingDelivery]:
        removed = [it for it in self._entries.values() if matches(it.message)]
        for entry in removed:
            self._delete(entry)
        return list(removed)

    def entries(self) -> Collection[PendingDelivery]:
        return self._entries.values()

    def counts(self) -> Counts:
        states = [it.state for it in self._entries.values()]
        return Counts(
            ready=states.count(State.READY),
            retrying=states.count(State.WAITING),
            in_flight=states.count(State.OWNED),
            parked=len(self._parked),
        )

    def blocked_keys(self) -> dict[str, str]:
        return {}

    def make_ready(self, entry: UnorderedDelivery) -> None:
        """Make `entry` due, behind the deliveries that are due already."""
        self._disown(entry)
        self._parked.discard(entry)
        entry.state = State.READY
        self._ready.append(entry)
        self.notify()

    def _owned(self, claim: Claim, worker: MemoryWorker) -> UnorderedDelivery | None:
        entry = self._entries.get(claim.deliveries[0].id)
        if entry is None or entry.owner is not worker or entry.fence != claim.fence:
            return None
        return entry

    def _delete(self, entry: UnorderedDelivery) -> None:
        del self._entries[entry.id]
        self._disown(entry)
        self._parked.discard(entry)
        self.store.agenda.remove(entry)
        entry.state = State.REMOVED  # the deque of due deliveries skips it

    @staticmethod
    def _disown(entry: UnorderedDelivery) -> None:
        if entry.owner is not None:
            entry.owner.holding.pop(entry, None)
            entry.owner.kept.discard(entry)
            entry.owner = None
