"""The memory driver's `MessageQueue`."""

from collections.abc import Collection, Sequence
from itertools import islice

from infra.clock import Clock
from infra.mq.bodies import refuse_larger
from infra.mq.dead_ids import number_of
from infra.mq.defaults import DEDUPE_WINDOW, LEASE
from infra.mq.drivers.memory.broadcast import MemoryBroadcasts
from infra.mq.drivers.memory.consumer import MemoryConsumer
from infra.mq.drivers.memory.dedupe import RecentIds
from infra.mq.drivers.memory.ordered import OrderedBacklog
from infra.mq.drivers.memory.scheduled import Plan
from infra.mq.drivers.memory.store import Store
from infra.mq.drivers.memory.subscriptions import Subscriptions
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.limits import MAX_BODY
from infra.mq.owner import QueueOwner
from infra.mq.receiver import SourceReceiver
from infra.mq.refusals import RETIRED, has_backlog, in_use, no_dead_letter, not_ordered
from infra.mq.types import (
    BacklogPolicy,
    ClaimLimits,
    DeadLetter,
    Features,
    Message,
    Registry,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)


class MemoryQueue:
    """A complete `MessageQueue` in one process and one event loop; the contents end with the object.

    Args:
        clock: The clock of all due times, leases and waits.
        dedupe_window: Seconds for which the ids of messages with `dedupe` are remembered.
        lease: Seconds without `renew` after which a worker is considered dead; with `math.inf` only `abandon` ends it.
        max_body: The largest body of a message, in bytes.
    """

    def __init__(
        self, *, clock: Clock, dedupe_window: float = DEDUPE_WINDOW, lease: float = LEASE, max_body: int = MAX_BODY
    ) -> None:
        self._clock = clock
        self._lease = lease
        self._store = Store(clock)
        self._plan = Plan(self._store.agenda)
        self._subscriptions = Subscriptions(self._store)
        self._recent = RecentIds(clock, dedupe_window)
        self._receivers: dict[SourceReceiver, tuple[str, MemoryBroadcasts]] = {}
        """Each open receiver, with its origin and its source."""

        self._owner = QueueOwner()
        self._max_body = max_body

    @property
    def features(self) -> Features:
        return Features(durable=False, multi_process=False, transactional=False, max_body=self._max_body)

    async def open(self) -> None:
        if not self._owner.is_here():
            self._owner.enter()

    async def close(self) -> None:
        if not self._owner.is_here():
            return
        self._owner.leave()
        for worker in self._store.workers.values():
            worker.abandon()
            worker.changed.set()
        for receiver in list(self._receivers):
            await receiver.close()

    def time(self) -> float:
        return self._clock.time()

    def next_due(self) -> float | None:
        """Return the time at which the next retry, mailbox or scheduled message becomes due; None without one.

        Deliveries that are due already do not count. For tests that move the clock.
        """
        self._store.agenda.promote(self._clock.time())
        return self._store.agenda.next_due()

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        # No wait for `REGISTRY_TTL`: `registry` returns views, so no publisher has an outdated copy.
        self._owner.check()
        self._subscriptions.declare(subscriptions, broadcasts)

    async def registry(self) -> Registry:
        self._owner.check()
        return self._subscriptions.registry

    async def publish(self, messages: Sequence[Message]) -> None:
        self._owner.check()
        refuse_larger(messages, self._max_body)
        now = self._clock.time()
        self._store.agenda.promote(now)
        routes = self._subscriptions.routes
        for message in messages:
            if message.dedupe and not self._recent.add(message.event, message.id, message.accepted_since):
                continue
            backlogs = routes.get(message.event, ())
            if message.due_at is None or message.due_at <= now:
                for backlog in backlogs:
                    backlog.add(message)
            elif backlogs:
                self._plan.add(message, message.due_at, backlogs)

    async def cancel(self, message_id: str) -> bool:
        self._owner.check()
        self._store.agenda.promote(self._clock.time())
        cancelled = self._plan.cancel(message_id)
        for message in cancelled:
            self._recent.forget(message.event, message.id)
        return bool(cancelled)

    async def scheduled(self, message_id: str) -> bool:
        self._owner.check()
        self._store.agenda.promote(self._clock.time())
        return message_id in self._plan

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._owner.check()
        for excluded, source in self._receivers.values():
            if excluded != origin:
                source.add(frames)

    async def receiver(self, *, origin: str) -> SourceReceiver:
        self._owner.check()
        source = MemoryBroadcasts()
        receiver = SourceReceiver(source, self._clock, self._owner, self._leave)
        self._receivers[receiver] = origin, source
        return receiver

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> MemoryConsumer:
        self._owner.check()
        worker = MemoryWorker(info, limits, self._clock, self._lease)
        self._store.workers[info.id] = worker
        return MemoryConsumer(worker, self._store, self._subscriptions.by_name)

    async def stats(self) -> list[SubscriptionStats]:
        self._owner.check()
        self._store.agenda.promote(self._clock.time())
        return self._subscriptions.stats(self._plan)

    async def warnings(self) -> list[str]:
        self._owner.check()
        return []

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        self._owner.check()
        name = self._subscriptions.canonical(subscription) if subscription is not None else None
        start = number_of(after) if after is not None else 0
        found = (
            it
            for number, it in self._store.dead.items()
            if start is not None and number > start and name in {None, it.subscription} and event in {None, it.event}
        )
        return list(islice(found, limit))

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        self._owner.check()
        letter = self._store.find_dead(dead_id)
        if letter is None:
            raise no_dead_letter(dead_id)
        return letter

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        self._owner.check()
        retried = 0
        for dead_id in dead_ids:
            letter = self._store.find_dead(dead_id)
            backlog = self._subscriptions.by_name.get(letter.subscription) if letter else None
            if letter is None or backlog is None:
                continue
            del self._store.dead[int(dead_id)]
            backlog.add(_message_of(letter))
            retried += 1
        return retried

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        self._owner.check()
        found = [dead_id for dead_id in dict.fromkeys(dead_ids) if self._store.find_dead(dead_id)]
        for dead_id in found:
            del self._store.dead[int(dead_id)]
        return len(found)

    async def pause(self, name: str) -> None:
        self._owner.check()
        self._subscriptions.get(name).paused = True

    async def resume(self, name: str) -> None:
        self._owner.check()
        backlog = self._subscriptions.get(name)
        backlog.paused = False
        backlog.notify()

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        self._owner.check()
        backlog = self._subscriptions.get(name)
        if not isinstance(backlog, OrderedBacklog):
            raise not_ordered(name)
        backlog.unblock(ordering_key, skip=skip)

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        self._owner.check()
        retiring = self._subscriptions.get(name, event)
        self._store.agenda.promote(self._clock.time())
        workers = self._subscriptions.workers_of(retiring)
        if event is None and workers:
            raise in_use(name, workers[0].info.id)
        scheduled = [it for it in self._plan.of(retiring) if event in {None, it.message.event}]
        waiting = sum(event in {None, it.message.event} for it in retiring.entries())
        if backlog == "refuse" and (scheduled or waiting):
            raise has_backlog(name, waiting + len(scheduled))
        self._subscriptions.remove(retiring, event)
        removed = retiring.remove(lambda message: event in {None, message.event})
        for it in scheduled:
            self._plan.withdraw(it, retiring)
            removed.append(self._store.entry(it.message))
        if backlog == "dead":
            for entry in removed:
                self._store.add_dead_letter(entry, retiring.name, otherwise=RETIRED)
        return len(removed)

    def _leave(self, receiver: SourceReceiver) -> None:
        self._receivers.pop(receiver, None)


def _message_of(letter: DeadLetter) -> Message:
    return Message(
        id=letter.message_id,
        event=letter.event,
        body=letter.body,
        published_at=letter.published_at,
        ordering_key=letter.ordering_key,
    )
