"""The publisher: sync listeners run first, then the dispatch passes events to the queue or to the transaction."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from bus.broadcasts import Broadcasts
from bus.delivery import current_cause, enter_cause, leave_cause
from bus.errors import BusError, CancelFailed, InvalidEvent, PublishIndeterminate, PublishRejected, PublishTooDeep
from bus.handler_calls import finish_call
from bus.listener_table import ListenerTable
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing, SyncPhase, chain, valid_headers, valid_id, valid_lifetime
from bus.publishing.buffer import PublishBuffer, SyncPhaseBuffer
from bus.publishing.direct import DirectDispatch, TransactionalDispatch
from bus.publishing.dispatch import Dispatch
from bus.publishing.hooks import Stamper
from bus.publishing.outbox_dispatch import OutboxDispatch
from bus.publishing.outbox_entries import Entry
from bus.publishing.subscription_cache import SubscriptionCache
from bus.store_errors import STORE_ERRORS, reason_of
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.db import CommitIndeterminate, Database, Transaction, TransactionRolledBack
from infra.mq import MessageQueue, QueueIndeterminate
from infra.mq.limits import shown

MAX_DEPTH = 32
"""The deepest nesting of publishes in sync listeners."""


class Publisher:
    """Publishes and cancels events, inside and outside of transactions.

    A publish runs its sync listeners, and is stored together with their publishes, or none of them is stored. The
    dispatch passes the events to the queue.
    """

    def __init__(
        self,
        mq: MessageQueue,
        db: Database | None,
        clock: Clock,
        listeners: ListenerTable,
        broadcasts: Broadcasts,
        metrics: BusMetrics,
        supervisor: Supervisor,
        *,
        max_payload: int,
        propagate: frozenset[str],
    ) -> None:
        self.stamper = Stamper(propagate)
        self.observers: list[Callable[[Outgoing], None]] = []
        self.subscriptions = subscriptions = SubscriptionCache(mq, clock)
        origin = broadcasts.origin
        self.dispatch: Dispatch
        if mq.features.transactional:
            self.dispatch = TransactionalDispatch(mq, subscriptions, metrics, origin=origin, max_payload=max_payload)
        elif db is not None and mq.features.durable:
            self.dispatch = OutboxDispatch(
                mq, db, clock, subscriptions, metrics, supervisor, origin=origin, max_payload=max_payload
            )
        else:
            self.dispatch = DirectDispatch(mq, subscriptions, metrics, origin=origin, max_payload=max_payload)
        self.relay = self.dispatch.relay
        self._db = db
        self._clock = clock
        self._listeners = listeners
        self._broadcasts = broadcasts
        self._metrics = metrics

    def outgoing(
        self,
        event: object,
        id_: str | None,
        headers: Mapping[str, str] | None,
        expires_in: object = None,
    ) -> Outgoing:
        """Return the publish of `event`, caused by the delivery or publish that the running task handles.

        Raises:
            InvalidEvent: the event, its id, its headers or its lifetime are not valid.
        """
        cause = current_cause()
        outgoing = Outgoing(event, self._listeners.local(type(event)), cause, self._clock.time())
        if type(cause) is Outgoing:
            outgoing.nest_in(cause)
        if id_ is not None:
            outgoing.explicit_id = valid_id(id_)
        if headers is not None:
            outgoing.headers = valid_headers(headers)
        if expires_in is not None:
            outgoing.expires_in = valid_lifetime(expires_in)
        if not self.stamper.idle:
            self.stamper.stamp(outgoing)
        return outgoing

    def outgoing_many(self, events: Iterable[object]) -> list[Outgoing]:
        """Return the publishes of `events`, caused by the delivery or publish that the running task handles.

        Raises:
            InvalidEvent: `events` is not iterable, or one of them is not valid.
        """
        if not isinstance(events, Iterable):
            raise InvalidEvent(f"publish_many takes an iterable of events, such as a list, not {shown(events)}")
        cause, now, local = current_cause(), self._clock.time(), self._listeners.local
        batch = [Outgoing(event, local(type(event)), cause, now, from_batch=True) for event in events]
        if type(cause) is Outgoing:
            for outgoing in batch:
                outgoing.nest_in(cause)
        if not self.stamper.idle:
            for outgoing in batch:
                self.stamper.stamp(outgoing)
        return batch

    async def publish(self, batch: Sequence[Outgoing]) -> None:
        """Run the sync listeners of each event in order, then send `batch` or add it to the transaction."""
        transaction = self._db.current() if self._db is not None else None
        if transaction is not None:
            await self._publish_inside(transaction, batch)
            return
        await self._prepare(batch)
        if self._db is None:
            await self._publish_without_database(batch)
        elif any(each.local.sync for each in batch) or self.dispatch.needs_transaction(batch):
            await self._publish_in_own_transaction(self._db, batch)
        else:
            await self._send_directly(batch)

    def is_local(self, outgoing: Outgoing) -> bool:
        """Whether only sync listeners without a transaction subscribe to the event, as known before they run."""
        db, phase, local = self._db, outgoing.sync_phase, outgoing.local
        return (
            (db is None or not (local.sync or db.current() is not None))
            and (phase is None or not phase.open)
            and not local.broadcast
            and self.subscriptions.unwanted(local.event_type.name)
        )

    async def publish_locally(self, outgoing: Outgoing) -> None:
        """Publish an event that `is_local`: like `publish`, without encoding it and without the queue."""
        if outgoing.local.sync:
            outgoing.sync_phase = phase = SyncPhaseBuffer(asyncio.current_task(), [outgoing])
            try:
                await _run_listeners(outgoing)
            finally:
                phase.ended = True
            if len(phase.batch) > 1 or not self.subscriptions.unwanted(outgoing.local.event_type.name):
                await self._prepare(phase.batch)
                await self._send_directly(phase.batch)
                return
        self._count((outgoing,))

    async def cancel(self, message_id: str) -> bool:
        """Cancel a delayed event; inside a transaction, if and only if it commits. Return whether it was scheduled.

        Raises:
            CancelFailed: the event was not cancelled, or that is unknown.
        """
        transaction = self._db.current() if self._db is not None else None
        try:
            if transaction is not None:
                return await self._cancel_inside(transaction, message_id)
            return await self.dispatch.cancel(message_id, self._buffer)
        except (QueueIndeterminate, CommitIndeterminate) as error:
            raise CancelFailed(f"event {message_id} may or may not have been cancelled: {error}") from error
        except STORE_ERRORS as error:
            raise CancelFailed(f"event {message_id} was not cancelled: {reason_of(error)}") from error

    async def before_commit(
        self, transaction: Transaction, batch: Sequence[Outgoing], cancelled: Sequence[str]
    ) -> Sequence[Entry]:
        """Store what a transaction published in that transaction, and return the outbox entries written."""
        return await self.dispatch.before_commit(transaction, batch, cancelled)

    async def after_commit(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """Send what the commit does not store, and run this process's broadcast listeners."""
        await self.dispatch.after_commit(batch, entries, cancelled)
        await self._accepted(batch)

    async def _accepted(self, batch: Sequence[Outgoing]) -> None:
        """Count published events, and run this process's broadcast listeners."""
        self._count(batch)
        for each in batch:
            if each.local.broadcast:
                await self._broadcasts.deliver(each)

    def _count(self, batch: Sequence[Outgoing]) -> None:
        self._metrics.published += len(batch)
        for observer in self.observers:
            for each in batch:
                observer(each)

    async def _prepare(self, batch: Sequence[Outgoing]) -> None:
        try:
            await self.dispatch.prepare(batch)
        except STORE_ERRORS as error:
            raise self._not_stored(batch, error) from error

    async def _publish_inside(self, transaction: Transaction, batch: Sequence[Outgoing]) -> None:
        try:
            await self._prepare(batch)
            await self._run(batch, self._buffer(transaction))
        except BaseException as error:
            # A caller that catches the error must not commit a part of the publish.
            transaction.mark_rollback_only(error)
            raise

    async def _publish_in_own_transaction(self, db: Database, batch: Sequence[Outgoing]) -> None:
        raised: BaseException | None = None
        try:
            async with db.transaction() as transaction:
                try:
                    await self._run(batch, self._buffer(transaction))
                except BaseException as error:
                    raised = error
                    raise
        except STORE_ERRORS as error:
            # An error of a listener reaches the caller unchanged; so does a rollback after one that it caught.
            if error is raised or (isinstance(error, TransactionRolledBack) and any(each.local.sync for each in batch)):
                raise
            raise self._not_stored(batch, error) from error

    def _not_stored(self, batch: Sequence[Outgoing], error: Exception) -> BusError:
        """Count the failure, and return the bus's error for an error of the queue or the database."""
        self._metrics.publish_failures += len(batch)
        if isinstance(error, QueueIndeterminate | CommitIndeterminate):
            return PublishIndeterminate(
                f"{batch[0].name} may or may not have been published: {reason_of(error)}", batch[0].id
            )
        return PublishRejected(f"{batch[0].name} was not published: {reason_of(error)}")

    async def _publish_without_database(self, batch: Sequence[Outgoing]) -> None:
        outer = batch[0].sync_phase
        if outer is not None and outer.open:
            mark = outer.savepoint()
            try:
                await self._run(batch, outer)
            except BaseException:
                # The publish failed: none of its events may be sent, even if an outer listener catches the error.
                outer.rollback_to(mark)
                raise
            return
        if not any(each.local.sync for each in batch):
            await self._send_directly(batch)
            return
        phase = SyncPhaseBuffer(asyncio.current_task(), [])
        for each in batch:
            each.sync_phase = phase
        try:
            await self._run(batch, phase)
        finally:
            phase.ended = True
        await self._send_directly(phase.batch)

    async def _send_directly(self, batch: Sequence[Outgoing]) -> None:
        try:
            await self.dispatch.send(batch)
        except STORE_ERRORS as error:
            raise self._not_stored(batch, error) from error
        await self._accepted(batch)

    async def _cancel_inside(self, transaction: Transaction, message_id: str) -> bool:
        buffer = self._buffer(transaction)
        withdrawn = buffer.withdraw(message_id)
        if withdrawn and all(each.explicit_id is None for each in withdrawn):
            return True  # the bus made the id for this event: no other event has it
        return await self.dispatch.cancel_inside(transaction, buffer, message_id) or bool(withdrawn)

    def _buffer(self, transaction: Transaction) -> PublishBuffer:
        return transaction.participant(self, lambda: PublishBuffer(self, transaction))

    async def _run(self, batch: Sequence[Outgoing], buffer: PublishBuffer | SyncPhase) -> None:
        for outgoing in batch:
            # Added before its listeners run: an event precedes the events that it causes.
            buffer.add(outgoing)
            if outgoing.local.sync:
                await _run_listeners(outgoing)


async def _run_listeners(outgoing: Outgoing) -> None:
    if outgoing.depth >= MAX_DEPTH:
        raise PublishTooDeep(
            f"sync listeners are nested more than {MAX_DEPTH} deep: {' -> '.join(chain(outgoing))}; "
            "make one of these listeners async, or break the cycle"
        )
    token = enter_cause(outgoing)
    try:
        for listener in outgoing.local.sync:
            delivery = outgoing.delivery(listener.name) if listener.wants_delivery else None
            await finish_call(listener.call(outgoing.event, delivery))
    finally:
        leave_cause(token)


def refuse_delay(outgoing: Outgoing, subscriptions: SubscriptionCache) -> None:
    """Refuse to delay an event with listeners that cannot wait.

    Raises:
        InvalidEvent: the event has sync or broadcast listeners.
    """
    names = [each.name for each in (*outgoing.local.sync, *outgoing.local.broadcast)]
    if names or subscriptions.broadcast(outgoing.name):
        raise InvalidEvent(
            f"{outgoing.name} cannot be delayed: only async listeners can wait, and it has sync or broadcast ones"
            + (f" ({', '.join(names)})" if names else "")
        )
