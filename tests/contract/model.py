"""The reference model of a queue: a plain list of deliveries, without regard to speed."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from infra.mq import ClaimedDelivery, DeadLetter, Outcome, SubscriptionStats
from tests.contract.acting import LIMITS

PLAIN, LINE = "plain", "mailbox"
"""The unordered and the ordered subscription of the model; every message goes to both."""


class Stage(Enum):
    """The state of a copy."""

    SCHEDULED = auto()
    WAITING = auto()
    """In its place, due at `due`; claimed when it has an owner."""

    PARKED = auto()
    BLOCKED = auto()
    DEAD = auto()
    ENDED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Copy:
    """One message for one subscription, as a delivery of the model."""

    subscription: str
    message_id: str
    key: str
    due: float
    order: int
    stage: Stage = Stage.WAITING
    owner: str | None = None
    isolated: bool = False
    failures: int = 0
    deferrals: int = 0
    takeovers: int = 0
    crashes: int = 0

    def matches(self, delivery: ClaimedDelivery) -> bool:
        """Return whether a delivery is this copy, with the same counters."""
        mine = (self.message_id, self.key, self.failures, self.deferrals, self.takeovers)
        its = (
            delivery.message_id,
            delivery.ordering_key,
            delivery.failures,
            delivery.deferrals,
            delivery.takeovers,
        )
        return mine == its and self.crashes == delivery.crashes

    def matches_dead(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is this copy."""
        mine = (self.subscription, self.message_id, self.key, self.failures, self.crashes)
        return mine == (letter.subscription, letter.message_id, letter.ordering_key, letter.failures, letter.crashes)


class Model:
    """The model of a queue: all copies that ever existed, and the operations of the contract on them."""

    def __init__(self, now: float, dedupe_window: float) -> None:
        self.now = now
        self.copies: list[Copy] = []
        self.dead: list[Copy] = []
        self.paused: set[str] = set()
        self.accepted: dict[str, float] = {}
        self.fences: dict[tuple[str, int | str], int] = {}
        """The fence of the last claim of each mailbox, by its key, and of each unordered delivery, by its id."""

        self._dedupe_window = dedupe_window
        self._order = itertools.count()

    def publish(self, message_id: str, key: str, due: float | None) -> None:
        """Accept a message, unless its id was accepted within the dedupe window."""
        accepted_at = self.accepted.get(message_id)
        if accepted_at is not None and self.now - accepted_at < self._dedupe_window:
            return
        self.accepted[message_id] = self.now
        for name in (PLAIN, LINE):
            copy = self._add(name, message_id, key, self.now if due is None else due)
            copy.stage = Stage.WAITING if copy.due <= self.now else Stage.SCHEDULED

    def advance(self, now: float) -> None:
        """Advance the time; scheduled copies that become due join their mailboxes."""
        self.now = now
        due = [it for it in self.copies if it.stage is Stage.SCHEDULED and it.due <= now]
        for copy in sorted(due, key=lambda it: (it.due, it.order)):
            copy.stage = Stage.WAITING
            copy.order = next(self._order)

    def scheduled(self, message_id: str) -> list[Copy]:
        """Return the copies of a message that are not due yet."""
        return [it for it in self.copies if it.message_id == message_id and it.stage is Stage.SCHEDULED]

    def mailbox(self, key: str) -> list[Copy]:
        """Return the mailbox of a key, first to last."""
        placed = {Stage.WAITING, Stage.PARKED, Stage.BLOCKED}
        found = [it for it in self.copies if it.subscription == LINE and it.key == key and it.stage in placed]
        return sorted(found, key=lambda it: it.order)

    def mailboxes(self) -> dict[str, list[Copy]]:
        """Return every mailbox that is not empty."""
        keys = {it.key for it in self.copies}
        return {key: mailbox for key in sorted(keys) if (mailbox := self.mailbox(key))}

    def claimable(self, name: str) -> list[list[Copy]]:
        """Return the possible claims of a subscription at this time."""
        if name in self.paused:
            return []
        if name == PLAIN:
            return [[it] for it in self._of(PLAIN, Stage.WAITING) if it.owner is None and it.due <= self.now]
        return [self._batch(mailbox) for mailbox in self.mailboxes().values() if self._is_free(mailbox)]

    def settle(self, copy: Copy, outcome: Outcome, delay: float) -> None:
        """Settle an owned copy."""
        copy.failures += outcome in {Outcome.RETRY, Outcome.BLOCK, Outcome.DEAD}
        copy.deferrals += outcome is Outcome.DEFER
        copy.isolated = False
        copy.due = self.now + delay
        if outcome is Outcome.DONE:
            copy.stage = Stage.ENDED
        elif outcome is Outcome.DEAD:
            self.add_dead_letter(copy)
        elif outcome is Outcome.PARK:
            copy.stage = Stage.PARKED
        elif outcome is Outcome.BLOCK:
            copy.stage = Stage.BLOCKED

    def add_dead_letter(self, copy: Copy) -> None:
        """Make a dead letter of a copy."""
        copy.stage = Stage.DEAD
        self.dead.append(copy)

    def release(self, owners: Iterable[str], *, dead: bool) -> int:
        """Release all copies that these workers own, as recovery or as close; return their number."""
        owners = set(owners)
        held = [it for it in self.copies if it.owner in owners and it.stage is Stage.WAITING]
        for copy in held:
            if dead:
                copy.crashes += copy.isolated
                copy.takeovers += not copy.isolated
            copy.owner, copy.isolated = None, False
        return len(held)

    def unpark(self) -> int:
        """Make all parked copies due; return their number."""
        parked = [it for it in self.copies if it.stage is Stage.PARKED]
        for copy in parked:
            copy.stage, copy.due = Stage.WAITING, self.now
        return len(parked)

    def waiting(self, name: str) -> list[Copy]:
        """Return every unfinished copy of a subscription, in any state."""
        return [it for it in self.copies if it.subscription == name and it.stage not in {Stage.DEAD, Stage.ENDED}]

    def forget(self, name: str) -> int:
        """Discard the backlog of a subscription; return its size."""
        gone = self.waiting(name)
        for copy in gone:
            copy.stage, copy.owner, copy.isolated = Stage.ENDED, None, False
        return len(gone)

    def retry_dead(self, copy: Copy) -> None:
        """Deliver a dead letter again."""
        self.dead.remove(copy)
        copy.stage = Stage.ENDED
        self._add(copy.subscription, copy.message_id, copy.key, self.now)

    def discard_dead(self, copy: Copy) -> None:
        """Discard a dead letter."""
        self.dead.remove(copy)
        copy.stage = Stage.ENDED

    def counts(self, name: str) -> dict[str, int]:
        """Return the counts that `stats` must return."""
        counts: dict[str, int] = dict.fromkeys(("ready", "retrying", "in_flight", "parked", "blocked"), 0)
        counts["scheduled"] = len(self._of(name, Stage.SCHEDULED))
        counts["dead"] = sum(it.subscription == name for it in self.dead)
        if name == PLAIN:
            counts["parked"] = len(self._of(PLAIN, Stage.PARKED))
            for copy in self._of(PLAIN, Stage.WAITING):
                counts["in_flight" if copy.owner else "ready" if copy.due <= self.now else "retrying"] += 1
            return counts
        for mailbox in self.mailboxes().values():
            head = mailbox[0]
            if head.stage is not Stage.WAITING:
                counts["parked" if head.stage is Stage.PARKED else "blocked"] += len(mailbox)
                continue
            claimed = sum(it.owner is not None for it in mailbox)
            waiting = int(not claimed and head.due > self.now)
            counts["in_flight"] += claimed
            counts["retrying"] += waiting
            counts["ready"] += len(mailbox) - claimed - waiting
        return counts

    def _add(self, name: str, message_id: str, key: str, due: float) -> Copy:
        copy = Copy(subscription=name, message_id=message_id, key=key, due=due, order=next(self._order))
        self.copies.append(copy)
        return copy

    def _of(self, name: str, stage: Stage) -> list[Copy]:
        return [it for it in self.copies if it.subscription == name and it.stage is stage]

    def _is_free(self, mailbox: list[Copy]) -> bool:
        head = mailbox[0]
        return head.stage is Stage.WAITING and head.due <= self.now and not any(it.owner for it in mailbox)

    @staticmethod
    def _batch(mailbox: list[Copy]) -> list[Copy]:
        if mailbox[0].takeovers >= LIMITS.suspect_after:
            return mailbox[:1]
        return list(
            itertools.takewhile(lambda it: it.takeovers < LIMITS.suspect_after, mailbox[: LIMITS.mailbox_batch])
        )


def counts_of(stats: SubscriptionStats) -> dict[str, int]:
    """Return the counts of a queue's stats in the model's form."""
    names = ("ready", "retrying", "in_flight", "parked", "blocked", "scheduled", "dead")
    return {name: getattr(stats, name) for name in names}
