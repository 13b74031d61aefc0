"""The backlog of an ordered subscription: one mailbox per ordering key."""

from collections import deque
from collections.abc import Callable, Collection
from itertools import islice

from infra.mq.drivers.memory.backlog import Backlog, ByteBudget, Counts, State, count_outcome, delivery_of
from infra.mq.drivers.memory.store import PendingDelivery, Store
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.refusals import not_blocked
from infra.mq.types import Claim, ClaimLimits, Message, Outcome, Settlement

_STAYING = {Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK}


class Mailbox:
    """The deliveries of one ordering key, in order, with one owner at a time."""

    __slots__ = ("backlog", "claimed", "entries", "fence", "key", "owner", "state", "ticket")

    def __init__(self, key: str, backlog: "OrderedBacklog") -> None:
        self.key = key
        self.backlog = backlog
        self.entries: deque[PendingDelivery] = deque()
        self.claimed = 0
        self.fence = 0
        self.owner: MemoryWorker | None = None
        self.state = State.IDLE
        self.ticket = 0

    def fall_due(self) -> None:
        self.backlog.make_ready(self)

    def release(self) -> None:
        for entry in islice(self.entries, self.claimed):
            entry.isolated = False
        self.backlog.close(self)

    def take_over(self) -> int:
        charged = self.claimed
        for entry in islice(self.entries, charged):
            entry.charge_death()
        self.backlog.close(self)
        return charged


class OrderedBacklog(Backlog):
    """The mailboxes of a subscription, with a queue of the ones that can be claimed."""

    ordered = True

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, store)
        self._mailboxes: dict[str, Mailbox] = {}
        self._ready: deque[Mailbox] = deque()
        self._parked: set[Mailbox] = set()

    def add(self, message: Message) -> None:
        key = message.ordering_key or ""
        mailbox = self._mailboxes.get(key)
        if mailbox is None:
            mailbox = self._mailboxes[key] = Mailbox(key, self)
        mailbox.entries.append(self.store.entry(message))
        if mailbox.state is State.IDLE:
            self.make_ready(mailbox)

    def claim(self, limit: int, worker: MemoryWorker, name: str, budget: ByteBudget) -> list[Claim]:
        claims: list[Claim] = []
        while self._ready and len(claims) < limit:
            mailbox = self._ready[0]
            if mailbox.state is not State.READY:
                self._ready.popleft()
                continue
            batch = _batch(mailbox, worker.limits)
            if not budget.take(sum(len(it.message.body) for it in batch)):
                break
            self._ready.popleft()
            claims.append(self._open(mailbox, batch, worker, name))
        return claims

    def settle(self, settlement: Settlement, worker: MemoryWorker, now: float) -> bool:
        mailbox = self._owned(settlement.claim, worker)
        if mailbox is None:
            return False
        outcome = settlement.outcome
        is_head = mailbox.claimed > 0 and mailbox.entries[0].id == settlement.delivery.id
        if is_head:
            self._end(mailbox, settlement)
        if is_head and outcome in _STAYING:
            self._close_for(mailbox, outcome, now + settlement.delay if settlement.delay > 0 else None)
        elif settlement.close:
            self.close(mailbox)
        return is_head

    def isolate(self, claim: Claim, worker: MemoryWorker) -> bool:
        mailbox = self._owned(claim, worker)
        if mailbox is None or not mailbox.claimed:
            return False
        mailbox.entries[0].isolated = True
        return True

    def keep(self, claim: Claim, worker: MemoryWorker) -> None:
        mailbox = self._owned(claim, worker)
        if mailbox is not None:
            worker.kept.add(mailbox)

    def unpark(self, known: Collection[str]) -> int:
        found = sorted((it for it in self._parked if it.entries[0].needs in known), key=lambda it: it.entries[0].id)
        for mailbox in found:
            self.make_ready(mailbox)
        return len(found)

    def unblock(self, key: str, *, skip: bool) -> None:
        """Unblock a key: retry the head or, with `skip`, turn it into a dead letter.

        Raises:
            MailboxNotBlocked: the key is not blocked.
        """
        mailbox = self._mailboxes.get(key)
        if mailbox is None or mailbox.state is not State.BLOCKED:
            raise not_blocked(self.name, key)
        if skip:
            self.store.add_dead_letter(mailbox.entries.popleft(), self.name)
        else:
            mailbox.entries[0].failures = 0
        self.close(mailbox)

    def remove(self, matches: Callable[[Message], bool]) -> list[PendingDelivery]:
        removed: list[PendingDelivery] = []
        for mailbox in list(self._mailboxes.values()):
            matching = [it for it in mailbox.entries if matches(it.message)]
            if matching:
                self._take_out(mailbox, matching)
                removed += matching
        return sorted(removed, key=lambda it: it.id)

    def entries(self) -> Collection[PendingDelivery]:
        return [entry for mailbox in self._mailboxes.values() for entry in mailbox.entries]

    def counts(self) -> Counts:
        counts = Counts()
        for mailbox in self._mailboxes.values():
            size = len(mailbox.entries)
            if mailbox.state is State.PARKED:
                counts.parked += size
            elif mailbox.state is State.BLOCKED:
                counts.blocked += size
            else:
                retrying = 1 if mailbox.state is State.WAITING else 0
                counts.retrying += retrying
                counts.in_flight += mailbox.claimed
                counts.ready += size - retrying - mailbox.claimed
        return counts

    def blocked_keys(self) -> dict[str, str]:
        heads = {it.key: it.entries[0] for it in self._mailboxes.values() if it.state is State.BLOCKED}
        return {key: head.failure.error if head.failure else "" for key, head in heads.items()}

    def make_ready(self, mailbox: Mailbox) -> None:
        """Make `mailbox` claimable, behind the mailboxes that are due already."""
        self._parked.discard(mailbox)
        mailbox.state = State.READY
        self._ready.append(mailbox)
        if self.waiters:
            self.notify()

    def close(self, mailbox: Mailbox) -> None:
        """Release `mailbox`: it is due at once if deliveries are left in it, else deleted."""
        self._disown(mailbox)
        self._parked.discard(mailbox)
        if mailbox.entries:
            self.make_ready(mailbox)
        else:
            mailbox.state = State.REMOVED
            del self._mailboxes[mailbox.key]

    def _close_for(self, mailbox: Mailbox, outcome: Outcome, due_at: float | None) -> None:
        if outcome is Outcome.PARK:
            self._disown(mailbox)
            mailbox.state = State.PARKED
            self._parked.add(mailbox)
        elif outcome is Outcome.BLOCK:
            self._disown(mailbox)
            mailbox.state = State.BLOCKED
        elif due_at is not None:
            self._disown(mailbox)
            mailbox.state = State.WAITING
            self.store.agenda.add(due_at, mailbox)
        else:
            self.close(mailbox)

    def _open(self, mailbox: Mailbox, batch: list[PendingDelivery], worker: MemoryWorker, name: str) -> Claim:
        mailbox.state = State.OWNED
        mailbox.owner = worker
        mailbox.claimed = len(batch)
        # One counter for all keys, since fences also increase after an empty mailbox was deleted and created again.
        mailbox.fence = next(self.store.fences)
        worker.holding[mailbox] = None
        return Claim(
            subscription=name,
            deliveries=[delivery_of(it, name) for it in batch],
            ordered=True,
            ordering_key=mailbox.key,
            fence=mailbox.fence,
        )

    def _end(self, mailbox: Mailbox, settlement: Settlement) -> None:
        head = mailbox.entries[0]
        count_outcome(head, settlement)
        if settlement.outcome in _STAYING:
            return
        mailbox.entries.popleft()
        mailbox.claimed -= 1
        if settlement.outcome is Outcome.DEAD:
            self.store.add_dead_letter(head, self.name)

    def _take_out(self, mailbox: Mailbox, matching: list[PendingDelivery]) -> None:
        head, removed_ids = mailbox.entries[0], {it.id for it in matching}
        mailbox.claimed -= sum(it.id in removed_ids for it in islice(mailbox.entries, mailbox.claimed))
        mailbox.entries = deque(it for it in mailbox.entries if it.id not in removed_ids)
        if mailbox.state is State.OWNED or (mailbox.entries and head.id not in removed_ids):
            return
        self.store.agenda.remove(mailbox)
        if mailbox.state is State.READY and mailbox.entries:
            return
        self.close(mailbox)

    def _owned(self, claim: Claim, worker: MemoryWorker) -> Mailbox | None:
        mailbox = self._mailboxes.get(claim.ordering_key or "")
        if mailbox is None or mailbox.owner is not worker or mailbox.fence != claim.fence:
            return None
        return mailbox

    @staticmethod
    def _disown(mailbox: Mailbox) -> None:
        mailbox.claimed = 0
        if mailbox.owner is not None:
            mailbox.owner.holding.pop(mailbox, None)
            mailbox.owner.kept.discard(mailbox)
            mailbox.owner = None


def _batch(mailbox: Mailbox, limits: ClaimLimits) -> list[PendingDelivery]:
    """Return the first deliveries of a mailbox, as one claim holds them; a suspect is alone in its claim."""
    batch: list[PendingDelivery] = []
    for entry in islice(mailbox.entries, limits.mailbox_batch):
        suspect = entry.takeovers >= limits.suspect_after
        if suspect and batch:
            break
        batch.append(entry)
        if suspect:
            break
    return batch
