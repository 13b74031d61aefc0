"""The state that all parts of one memory queue share."""

import itertools

from infra.clock import Clock
from infra.mq.dead_ids import number_of
from infra.mq.drivers.memory.agenda import Agenda
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.types import DeadLetter, Failure, Message


class PendingDelivery:
    """One unfinished delivery, with its counters."""

    __slots__ = ("crashes", "deferrals", "failure", "failures", "id", "isolated", "message", "needs", "takeovers")

    def __init__(self, id: int, message: Message) -> None:  # noqa: A002  # named as in the contract
        self.id = id
        self.message = message
        self.failures = 0
        self.deferrals = 0
        self.takeovers = 0
        self.crashes = 0
        self.isolated = False
        self.failure: Failure | None = None
        self.needs = message.event
        """What a worker must know to claim this delivery after it was parked."""

    def charge_death(self) -> None:
        """Count the death of the worker that held this delivery: a crash if it was isolated, else a takeover."""
        if self.isolated:
            self.crashes += 1
        else:
            self.takeovers += 1
        self.isolated = False


class Store:
    """The counters, the agenda, the dead letters and the workers of one queue."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.agenda = Agenda()
        self.ids = itertools.count(1)
        self.fences = itertools.count(1)
        self.dead: dict[int, DeadLetter] = {}
        self.workers: dict[str, MemoryWorker] = {}
        self._dead_ids = itertools.count(1)

    def entry(self, message: Message) -> PendingDelivery:
        """Return a new delivery of `message`."""
        return PendingDelivery(next(self.ids), message)

    def find_dead(self, dead_id: str) -> DeadLetter | None:
        """Return the dead letter with this id; None without one."""
        number = number_of(dead_id)
        return None if number is None else self.dead.get(number)

    def add_dead_letter(self, entry: PendingDelivery, subscription: str, *, otherwise: str = "") -> None:
        """Store `entry` as a dead letter, with its last failure, or `otherwise` if it has none."""
        dead_id = next(self._dead_ids)
        message, failure = entry.message, entry.failure
        self.dead[dead_id] = DeadLetter(
            id=str(dead_id),
            subscription=subscription,
            message_id=message.id,
            event=message.event,
            ordering_key=message.ordering_key,
            body=message.body,
            error=failure.error if failure else otherwise,
            traceback=failure.traceback if failure else "",
            failures=entry.failures,
            crashes=entry.crashes,
            published_at=message.published_at,
            died_at=self.clock.time(),
        )
