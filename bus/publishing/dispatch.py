"""The dispatch of published events to the queue: the base class of all topologies."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import structlog

from bus.listener_table import LocalListeners
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing
from bus.publishing.buffer import PublishBuffer
from bus.publishing.outbox_entries import Entry
from bus.publishing.relay import Relay
from bus.publishing.subscription_cache import SubscriptionCache
from infra.db import Transaction
from infra.mq import Message, MessageQueue, QueueError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Dispatch(ABC):
    """Passes events to the queue, outside of transactions and before and after COMMIT; one subclass per topology.

    It encodes only the events that have durable or broadcast listeners, by the subscription cache.
    """

    def __init__(
        self, mq: MessageQueue, subscriptions: SubscriptionCache, metrics: BusMetrics, *, origin: str, max_payload: int
    ) -> None:
        self._mq = mq
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._origin = origin
        self._max_payload = max_payload
        self._max_body = max_payload
        # A reply of a remote queue can get lost: its messages are deduplicated, so that they can be sent again.
        self._remote = mq.features.durable and not mq.features.transactional
        self.learn_limits()

    @property
    def relay(self) -> Relay | None:
        """The relay of the outbox; None in a topology without one."""
        return None

    def learn_limits(self) -> None:
        """Read the queue's limit on message sizes again; it is final once the queue is open."""
        self._max_body = min(self._max_payload, self._mq.features.max_body)

    # --- what differs between topologies ----------------------------------------------------------------------------

    @abstractmethod
    async def before_commit(
        self, transaction: Transaction, batch: Sequence[Outgoing], cancelled: Sequence[str]
    ) -> Sequence[Entry]:
        """Store what a transaction published in that transaction, and return the outbox entries written."""

    @abstractmethod
    async def after_commit(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """Send what is not stored by the commit itself."""

    async def cancel_inside(self, transaction: Transaction, buffer: PublishBuffer, message_id: str) -> bool:
        """Cancel a delayed event outside of `buffer`, if and only if `transaction` commits; return whether it can be.

        Raises:
            QueueError, DatabaseError: the event was not cancelled.
        """
        if buffer.cancels(message_id) or not await self._is_cancellable(transaction, message_id):
            return False
        buffer.cancel_at_commit(message_id)
        return True

    async def cancel(self, message_id: str, buffer_of: Callable[[Transaction], PublishBuffer]) -> bool:
        """Cancel a delayed event outside of a transaction; return whether it was still scheduled.

        `buffer_of` returns the buffer of a transaction that this call begins.

        Raises:
            CancelFailed: the event is being sent.
            QueueError, DatabaseError: the event was not cancelled, or that is unknown.
        """
        return await self._mq.cancel(message_id)

    async def time(self) -> float:
        """Return the queue's time, in seconds since the epoch.

        Raises:
            QueueUnavailable: this process has never reached the queue.
        """
        return self._mq.time()

    async def backlog(self) -> tuple[int, float | None]:
        """Return the number of rows in the outbox, and when the oldest was written (seconds since the epoch)."""
        return 0, None

    def needs_transaction(self, _batch: Sequence[Outgoing]) -> bool:
        """Whether `batch`, published outside of a transaction, must be stored in one."""
        return False

    async def _is_cancellable(self, transaction: Transaction, message_id: str) -> bool:
        """Whether the event is scheduled, so that the commit can cancel it."""
        return await self._mq.scheduled(message_id)

    async def _refresh(self) -> None:
        """Refresh the subscription cache before an event that it does not know is published."""
        try:
            await self._subscriptions.refresh()
        except QueueError as error:
            # Until the cache is fresh again, no event is skipped: the queue decides, or fails the publish.
            log.warning("registry read failed", error=str(error))

    async def _broadcast(self, batch: Sequence[Outgoing]) -> None:
        """Send the events of `batch` that have broadcast listeners in other processes."""
        # The publish may have taken long, and another process may have subscribed since.
        if not self._subscriptions.fresh:
            await self._refresh()
        if frames := [each.body for each in self._chosen(batch, self._is_broadcast)]:
            await self._mq.broadcast(frames, origin=self._origin)
            self._metrics.broadcasts_sent += len(frames)

    # --- what all topologies do -------------------------------------------------------------------------------------

    async def prepare(self, batch: Sequence[Outgoing]) -> None:
        """Set when the events of `batch` expire, and encode those with listeners elsewhere; before any sync listener.

        Raises:
            InvalidEvent, PublishRejected: an event cannot be encoded or is too large.
            QueueError, DatabaseError: an event expires, and the time of the queue's clock is unknown.
        """
        subscriptions = self._subscriptions
        local, wanted = None, False
        for each in batch:
            if each.local is not local:
                local = each.local
                name = local.event_type.name
                if not subscriptions.knows(name):
                    await self._refresh()
                elif not subscriptions.fresh:
                    subscriptions.refresh_soon()  # a broadcast listener may be new
                wanted = subscriptions.routed(name) or self._is_broadcast(local)
            if each.expires_at is None and (lifetime := each.expires_in or each.local.event_type.lifetime) is not None:
                each.expires_at = max(await self.time(), each.due_at or 0.0) + lifetime
            if wanted:
                self._message(each)

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """Send the events of `batch` that have durable or broadcast listeners.

        A transactional queue stores them in the current transaction.

        Raises:
            QueueError, DatabaseError: not stored, or that is unknown.
        """
        if messages := self._messages(batch):
            await self._mq.publish(messages)
        await self._broadcast(batch)

    def _messages(self, batch: Iterable[Outgoing]) -> list[Message]:
        return self._chosen(batch, lambda local: self._subscriptions.routed(local.event_type.name))

    def _chosen(self, batch: Iterable[Outgoing], wanted: Callable[[LocalListeners], bool]) -> list[Message]:
        chosen, local, choose = [], None, False
        for each in batch:
            if each.local is not local:  # most batches are all of one event
                local = each.local
                choose = wanted(local)
            if choose:
                chosen.append(self._message(each))
        return chosen

    def _message(self, outgoing: Outgoing) -> Message:
        return outgoing.encoded or outgoing.message(self._max_body, repeatable=self._remote and not outgoing.from_batch)

    def _is_broadcast(self, local: LocalListeners) -> bool:
        return bool(local.broadcast) or self._subscriptions.broadcast(local.event_type.name)
