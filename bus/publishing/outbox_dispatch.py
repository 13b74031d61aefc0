"""Dispatch by the outbox: to a remote queue, for publishers with a database."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from bus.errors import CancelFailed
from bus.listener_table import LocalListeners
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing
from bus.publishing.buffer import PublishBuffer
from bus.publishing.dispatch import Dispatch
from bus.publishing.outbox import CLOCK_MARGIN, Outbox
from bus.publishing.outbox_entries import Entry, EntryKind, MessageState
from bus.publishing.relay import Relay
from bus.publishing.subscription_cache import SubscriptionCache
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.db import Database, Transaction
from infra.mq import Message, MessageQueue, QueueUnavailable

SENT_WITHIN = 5.0
"""Seconds for which a cancellation waits for a message that is being sent to the queue."""

POLL_EVERY = 0.1
"""Seconds between two checks whether such a message has been sent."""


class OutboxDispatch(Dispatch):
    """For a remote queue: a transaction's events are rows of its commit, and the relay sends them.

    No publish inside a transaction waits for the queue. Broadcasts are sent after the commit, at most once.
    """

    def __init__(
        self,
        mq: MessageQueue,
        db: Database,
        clock: Clock,
        subscriptions: SubscriptionCache,
        metrics: BusMetrics,
        supervisor: Supervisor,
        *,
        origin: str,
        max_payload: int,
    ) -> None:
        super().__init__(mq, subscriptions, metrics, origin=origin, max_payload=max_payload)
        self.outbox = outbox = Outbox(db, clock)
        self._relay = Relay(mq, outbox, clock, metrics, supervisor, subscriptions, origin=origin)
        self._db = db
        self._clock = clock

    @property
    def relay(self) -> Relay:
        return self._relay

    async def before_commit(
        self, transaction: Transaction, batch: Sequence[Outgoing], cancelled: Sequence[str]
    ) -> Sequence[Entry]:
        """Write the events and the cancellations into the outbox."""
        await self.prepare(batch)  # again: the subscription cache may have expired since the publish
        messages = self._messages(batch)
        if not messages and not cancelled:
            return ()
        # Another relay may send a row again, much later: the queue then checks whether it has the message already.
        since = await self.time() - CLOCK_MARGIN
        rows = [(_kind(each), replace(each, dedupe=True, fresh=False, accepted_since=since)) for each in messages]
        return await self.outbox.put(transaction, rows, cancelled)

    async def after_commit(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """Wake up the relay, and pass it the broadcasts."""
        self._relay.committed(entries, cancelled=bool(cancelled))
        await self._broadcast(batch)

    async def _broadcast(self, batch: Sequence[Outgoing]) -> None:
        """Pass to the relay every event that may have broadcast listeners."""
        self._relay.broadcast([(each.event, each.body) for each in self._chosen(batch, self._may_broadcast)])

    def needs_transaction(self, batch: Sequence[Outgoing]) -> bool:
        """Whether an event of `batch` is ordered: it must not overtake an event in the outbox."""
        return any(each.local.event_type.ordered for each in batch)

    async def time(self) -> float:
        """Return the queue's time or, while this process has never reached the queue, the database's."""
        try:
            return self._mq.time()
        except QueueUnavailable:
            return await self.outbox.time()

    async def backlog(self) -> tuple[int, float | None]:
        """Return the number of rows in the outbox, and when the oldest was written (seconds since the epoch)."""
        return await self.outbox.size()

    async def cancel(self, message_id: str, buffer_of: Callable[[Transaction], PublishBuffer]) -> bool:
        """Delete the event's row if no process has begun to send it; cancel the event in the queue otherwise."""
        deadline = self._clock.monotonic() + SENT_WITHIN
        while True:
            match await self.outbox.state_of(message_id, await self.time()):
                case None | MessageState.DUE:
                    return await self._mq.cancel(message_id)
                case MessageState.CANCELLED:
                    return False
                case MessageState.REJECTED:
                    async with self._db.transaction() as transaction:
                        return await self.cancel_inside(transaction, buffer_of(transaction), message_id)
                case MessageState.SCHEDULED:
                    async with self._db.transaction() as transaction:
                        if await self.outbox.delete_unsent(transaction, message_id):
                            # The queue may hold an earlier event of that id.
                            buffer_of(transaction).cancel_at_commit(message_id)
                            return True
            if self._clock.monotonic() >= deadline:
                raise CancelFailed(f"event {message_id} was not cancelled: it is being sent to the queue; try again")
            await self._clock.sleep(POLL_EVERY)

    async def _is_cancellable(self, transaction: Transaction, message_id: str) -> bool:
        match state := await self.outbox.state_of(message_id, await self.time()):
            case MessageState.SCHEDULED:
                return True
            case MessageState.CANCELLED:
                return False
            case MessageState.REJECTED:
                await self.outbox.delete_rejected(transaction, message_id)
                return True
        try:
            return await self._mq.scheduled(message_id)
        except QueueUnavailable:
            # The commit does not wait for the queue: the relay cancels there later.
            return state is None

    async def _refresh(self) -> None:
        # A remote queue may be slow or unavailable, and no publish waits for it: until it answers, no event is skipped.
        self._subscriptions.refresh_soon()

    def _may_broadcast(self, local: LocalListeners) -> bool:
        return bool(local.broadcast) or self._subscriptions.may_broadcast(local.event_type.name)


def _kind(message: Message) -> EntryKind:
    """Return the kind of a message's row: PUBLISH if it must be sent after others of its key or id, else DIRECT."""
    return EntryKind.DIRECT if message.ordering_key is None and message.fresh else EntryKind.PUBLISH
