"""The publishing side: sync listeners now, the queue when the transaction commits."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from msgspec.structs import replace

from bus.broadcasts import Broadcasts
from bus.delivery import current_cause, enter_cause, leave_cause
from bus.errors import BusError, InvalidEvent, PublishIndeterminate, PublishRejected, PublishTooDeep
from bus.handler_calls import finish_call
from bus.listener_table import ListenerTable, Routes
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing, Root, chain, valid_headers, valid_id
from bus.publishing.buffer import Gathering, PublishBuffer
from bus.publishing.cancelling import Canceller
from bus.publishing.outbox import CLOCK_MARGIN, Outbox
from bus.publishing.outbox_entries import Entry, EntryKind
from bus.publishing.relay import Relay
from bus.publishing.subscription_cache import SubscriptionCache
from bus.store_errors import STORE_ERRORS, reason_of
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.db import CommitIndeterminate, Database, Transaction, TransactionRolledBack
from infra.mq import Message, MessageQueue, QueueError, QueueIndeterminate, QueueUnavailable
from infra.mq.limits import shown

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_DEPTH = 32
"""How many sync listeners may stand inside each other."""


class Publisher:
    """Does what DESIGN 4 says `publish` does, in and out of a transaction."""

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
    ) -> None:
        features = mq.features
        self.transactional = features.transactional
        # Replies get lost on the way from such a queue: whatever was sent to it may have to be sent again.
        self._remote = features.durable and not features.transactional
        self._outbox: Outbox | None = None
        self.relay: Relay | None = None
        self.subscriptions = SubscriptionCache(mq, clock)
        if db is not None and self._remote:
            self._outbox = Outbox(db, clock)
            self.relay = Relay(
                mq, self._outbox, clock, metrics, supervisor, self.subscriptions, origin=broadcasts.origin
            )
        self.observers: list[Callable[[Outgoing], None]] = []
        self._mq = mq
        self._db = db
        self._clock = clock
        self._listeners = listeners
        self._broadcasts = broadcasts
        self._metrics = metrics
        self._max_payload = max_payload
        self._max_body = max_payload
        self.cancel = Canceller(mq, db, self._outbox, clock, self.time, self._buffer).cancel
        self.learn_limits()

    def learn_limits(self) -> None:
        """Take over what the queue stores at most; the driver knows for sure once it is open."""
        self._max_body = min(self._max_payload, self._mq.features.max_body)

    def outgoing(
        self,
        event: object,
        id_: str | None,
        headers: Mapping[str, str] | None,
    ) -> Outgoing:
        """Return the publish of `event`, caused by whatever is being handled here."""
        cause = current_cause()
        outgoing = Outgoing(event, self._listeners.routes(type(event)), cause, self._clock.time())
        if type(cause) is Outgoing:
            outgoing.stand_inside(cause)
        if id_ is not None:
            outgoing.explicit_id = valid_id(id_)
        if headers is not None:
            outgoing.headers = valid_headers(headers)
        return outgoing

    def outgoing_many(self, events: Iterable[object]) -> list[Outgoing]:
        """Return the publishes of `events`, caused by whatever is being handled here."""
        if not isinstance(events, Iterable):
            raise InvalidEvent(f"publish_many takes several events, in a list or the like, not {shown(events)}")
        cause, now, routes = current_cause(), self._clock.time(), self._listeners.routes
        batch = [Outgoing(event, routes(type(event)), cause, now, one_of_many=True) for event in events]
        if type(cause) is Outgoing:
            for outgoing in batch:
                outgoing.stand_inside(cause)
        return batch

    async def publish(self, batch: Sequence[Outgoing]) -> None:
        """Run the sync phases of `batch` in order, then send it, or leave it to the surrounding transaction."""
        transaction = self._db.current() if self._db is not None else None
        if transaction is not None:
            await self._publish_inside(transaction, batch)
            return
        await self._prepare(batch)
        if self._db is None:
            await self._publish_gathering(batch)
        elif self._needs_transaction(batch):
            await self._publish_in_own_transaction(self._db, batch)
        else:
            await self._send_directly(batch)

    def stays_here(self, outgoing: Outgoing) -> bool:
        """Whether nobody wants it but sync listeners that share no transaction, as far as is known before they run."""
        db, root, routes = self._db, outgoing.root, outgoing.routes
        return (
            (db is None or not (routes.sync or db.current() is not None))
            and (root is None or not root.open)
            and not routes.broadcast
            and self.subscriptions.unwanted(routes.event_type.name)
        )

    async def publish_here(self, outgoing: Outgoing) -> None:
        """Do what `publish` does, by a shorter way, with one that `stays_here`."""
        if outgoing.routes.sync:
            outgoing.root = gathering = Gathering(asyncio.current_task(), [outgoing])
            try:
                await _run_listeners(outgoing)
            finally:
                gathering.ended = True
            if len(gathering.batch) > 1 or not self.subscriptions.unwanted(outgoing.routes.event_type.name):
                await self._send_directly(gathering.batch)
                return
        self._count((outgoing,))

    async def time(self) -> float:
        """Return the queue's time; as long as this process has never reached the queue, the database's in its place.

        Raises:
            QueueUnavailable: the queue was never reached, and there is no outbox.
        """
        try:
            return self._mq.time()
        except QueueUnavailable:
            if self._outbox is None:
                raise
            return await self._outbox.time()

    async def outbox_backlog(self) -> tuple[int, float | None]:
        """Return how many rows wait in the outbox, and since when the oldest does; none where there is no outbox."""
        return await self._outbox.size() if self._outbox is not None else (0, None)

    async def commit(
        self, transaction: Transaction, batch: Sequence[Outgoing], cancelled: Sequence[str]
    ) -> list[Entry]:
        """Make what a transaction published a part of it: in the queue's own tables, or in the outbox."""
        if self._outbox is None and not self.transactional:
            return []
        await self._prepare(batch)  # again: what was fresh when it was published may be old by now
        if self._outbox is None:
            await self.send(batch)
            return []
        messages = self._messages(batch)
        if not messages and not cancelled:
            return []
        # They may be sent again, and by another relay, however much later: the queue is to check whether they were.
        since = await self.time() - CLOCK_MARGIN
        rows = [(_kind(each), replace(each, dedupe=True, fresh=False, accepted_since=since)) for each in messages]
        return await self._outbox.put(transaction, rows, cancelled)

    async def committed(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """See what a transaction published on its way, now that it has committed."""
        if self.relay is not None:
            self.relay.committed(entries, cancelled=bool(cancelled))
            self.relay.broadcast(self._frames(batch, self._may_broadcast))
        elif not self.transactional:
            await self._send_committed(batch, cancelled)
        await self.accepted(batch)

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """Hand to the queue what anybody subscribed to; a transactional queue joins the transaction."""
        if messages := self._messages(batch):
            await self._mq.publish(messages)
        if self.relay is not None:
            self.relay.broadcast(self._frames(batch, self._may_broadcast))
            return
        # Publishing may have taken its time, and a process elsewhere may listen by now: only a fresh copy can tell.
        if not self.subscriptions.fresh:
            await self._try_refresh()
        if frames := [frame for _, frame in self._frames(batch, self._is_broadcast)]:
            await self._mq.broadcast(frames, origin=self._broadcasts.origin)
            self._metrics.broadcasts_sent += len(frames)

    def _messages(self, batch: Iterable[Outgoing]) -> list[Message]:
        return self._chosen(batch, lambda routes: self.subscriptions.routed(routes.event_type.name))

    def _frames(self, batch: Iterable[Outgoing], wanted: Callable[[Routes], bool]) -> list[tuple[str, bytes]]:
        return [(each.event, each.body) for each in self._chosen(batch, wanted)]

    def _chosen(self, batch: Iterable[Outgoing], wanted: Callable[[Routes], bool]) -> list[Message]:
        chosen, routes, choose = [], None, False
        for each in batch:
            if each.routes is not routes:  # most batches are all of one event
                routes = each.routes
                choose = wanted(routes)
            if choose:
                chosen.append(self._message(each))
        return chosen

    def _message(self, outgoing: Outgoing) -> Message:
        return outgoing.made or outgoing.message(self._max_body, repeatable=self._remote and not outgoing.one_of_many)

    async def _send_committed(self, batch: Sequence[Outgoing], cancelled: Iterable[str]) -> None:
        """Hand over what a committed transaction published to a queue that ends with this process, as that would."""
        try:
            # First: what is cancelled and published again under the same id is published in the end.
            for message_id in cancelled:
                await self._mq.cancel(message_id)
            if batch:
                await self.send(batch)
        except QueueError as error:
            self._metrics.publish_failures += len(batch)
            log.error(  # noqa: TRY400 - one line: the cause is the queue's, and named
                "publish after commit failed", count=len(batch), error=str(error)
            )

    async def accepted(self, batch: Sequence[Outgoing]) -> None:
        """Do what follows once `batch` is published for good: run this process's own broadcast listeners."""
        self._count(batch)
        for each in batch:
            if each.routes.broadcast:
                await self._broadcasts.deliver(each)

    def _count(self, batch: Sequence[Outgoing]) -> None:
        self._metrics.published += len(batch)
        for observer in self.observers:
            for each in batch:
                observer(each)

    async def _publish_inside(self, transaction: Transaction, batch: Sequence[Outgoing]) -> None:
        try:
            await self._prepare(batch)
            await self._run(batch, self._buffer(transaction))
        except BaseException as error:
            # Whoever catches this must not commit a half of what was meant to be one.
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
            # What a listener raised is the caller's to see as it is, and so is what came of an error that one caught.
            if error is raised or (
                isinstance(error, TransactionRolledBack) and any(each.routes.sync for each in batch)
            ):
                raise
            raise self._not_stored(batch, error) from error

    def _not_stored(self, batch: Sequence[Outgoing], error: Exception) -> BusError:
        """Count the failure, and return what to raise because of an error of the queue or the database."""
        self._metrics.publish_failures += len(batch)
        if isinstance(error, QueueIndeterminate | CommitIndeterminate):
            return PublishIndeterminate(
                f"{batch[0].name} may or may not have been published: {reason_of(error)}", batch[0].id
            )
        return PublishRejected(f"{batch[0].name} was not published: {reason_of(error)}")

    async def _publish_gathering(self, batch: Sequence[Outgoing]) -> None:
        root = batch[0].root
        if root is not None and root.open:
            mark = root.savepoint()
            try:
                await self._run(batch, root)
            except BaseException:
                # The caller is told that it failed: nothing of it may be sent, also if a listener further out goes on.
                root.rollback_to(mark)
                raise
            return
        if not any(each.routes.sync for each in batch):
            await self._send_directly(batch)
            return
        gathering = Gathering(asyncio.current_task(), [])
        for each in batch:
            each.root = gathering
        try:
            await self._run(batch, gathering)
        finally:
            gathering.ended = True
        await self._send_directly(gathering.batch)

    async def _send_directly(self, batch: Sequence[Outgoing]) -> None:
        try:
            await self.send(batch)
        except STORE_ERRORS as error:
            raise self._not_stored(batch, error) from error
        await self.accepted(batch)

    async def _prepare(self, batch: Sequence[Outgoing]) -> None:
        """Make sure, before any listener runs, that all that is wanted can be encoded."""
        routes, wanted = None, False
        for each in batch:
            if each.routes is not routes:
                routes = each.routes
                name = routes.event_type.name
                if not self.subscriptions.knows(name):
                    await self._try_refresh()
                elif not self.subscriptions.fresh:
                    self.subscriptions.refresh_soon()  # for the broadcasts, while it is published
                wanted = self.subscriptions.routed(name) or self._is_broadcast(routes)
            if wanted:
                self._message(each)

    async def _try_refresh(self) -> None:
        if self._outbox is not None:
            # A queue elsewhere may be slow or away, and no publish waits for that: until it answers, all is wanted.
            self.subscriptions.refresh_soon()
            return
        try:
            await self.subscriptions.refresh()
        except QueueError as error:
            # Then nothing is skipped: the queue itself decides, or fails the publish.
            log.warning("registry read failed", error=str(error))

    def _needs_transaction(self, batch: Sequence[Outgoing]) -> bool:
        """Whether sync listeners are to share one, or an ordered event must not overtake those in the outbox."""
        if any(each.routes.sync for each in batch):
            return True
        return self._outbox is not None and any(each.routes.event_type.ordered for each in batch)

    def _is_broadcast(self, routes: Routes) -> bool:
        return bool(routes.broadcast) or self.subscriptions.broadcast(routes.event_type.name)

    def _may_broadcast(self, routes: Routes) -> bool:
        return bool(routes.broadcast) or self.subscriptions.may_broadcast(routes.event_type.name)

    def _buffer(self, transaction: Transaction) -> PublishBuffer:
        return transaction.participant(self, lambda: PublishBuffer(self, transaction))

    async def _run(self, batch: Sequence[Outgoing], place: PublishBuffer | Root) -> None:
        for outgoing in batch:
            # First its place, then its listeners: an effect never stands before its cause.
            place.add(outgoing)
            if outgoing.routes.sync:
                await _run_listeners(outgoing)


async def _run_listeners(outgoing: Outgoing) -> None:
    if outgoing.depth >= MAX_DEPTH:
        raise PublishTooDeep(
            f"sync listeners are more than {MAX_DEPTH} deep: {' -> '.join(chain(outgoing))}; "
            "make one of these listeners async, or break the circle"
        )
    token = enter_cause(outgoing)
    try:
        for listener in outgoing.routes.sync:
            delivery = outgoing.delivery(listener.name) if listener.wants_delivery else None
            await finish_call(listener.call(outgoing.event, delivery))
    finally:
        leave_cause(token)


def _kind(message: Message) -> EntryKind:
    """Return whether a row may be sent at once: not before another of its key, or a cancellation of its id."""
    return EntryKind.DIRECT if message.ordering_key is None and message.fresh else EntryKind.PUBLISH


def refuse_delay(outgoing: Outgoing, subscriptions: SubscriptionCache) -> None:
    """Refuse to delay an event that somebody wants now.

    Raises:
        InvalidEvent: it has sync or broadcast listeners.
    """
    names = [each.name for each in (*outgoing.routes.sync, *outgoing.routes.broadcast)]
    if names or subscriptions.broadcast(outgoing.name):
        raise InvalidEvent(
            f"{outgoing.name} cannot be delayed: only async listeners can wait, and it has sync or broadcast ones"
            + (f" ({', '.join(names)})" if names else "")
        )
