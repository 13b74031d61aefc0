"""The publishing side: sync listeners now, the queue when the transaction commits."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from bus.broadcasts import Broadcasts
from bus.delivery import current_cause, enter_cause, leave_cause
from bus.errors import InvalidEvent, PublishIndeterminate, PublishRejected, PublishTooDeep
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing, Root, chain, valid_headers, valid_id
from bus.registry import ListenerRegistry
from infra.clock import Clock
from infra.db import Database, Transaction
from infra.mq import (
    REGISTRY_TTL,
    MessageQueue,
    QueueError,
    QueueIndeterminate,
    Registry,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_DEPTH = 32
"""How many sync listeners may stand inside each other."""


class RegistryCopy:
    """This process's copy of who subscribed to what, to skip the queue where nobody did."""

    def __init__(self, mq: MessageQueue, clock: Clock) -> None:
        self._mq = mq
        self._clock = clock
        self._registry = Registry()
        self._confirmed = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the copy was confirmed recently enough to be trusted."""
        return self._clock.monotonic() - self._confirmed < REGISTRY_TTL

    def routed(self, name: str) -> bool:
        """Whether somebody may have a durable subscription to that event: all are taken to have, until it is known."""
        return name in self._registry.routed or not self.fresh

    def broadcast(self, name: str) -> bool:
        """Whether the copy knows a process that listens to broadcasts of that event."""
        return name in self._registry.broadcast

    def knows(self, name: str) -> bool:
        """Whether the copy lists that event, or is fresh enough to say that nobody wants it."""
        return name in self._registry.routed or name in self._registry.broadcast or self.fresh

    async def refresh(self) -> None:
        """Confirm or renew the copy; several callers share one look."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        asked = self._clock.monotonic()
        self._registry = await self._mq.registry()
        self._confirmed = asked

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # its awaiters raise it; with none left it is nobody's


class PublishBuffer:
    """What was published inside one transaction, or inside one tree of sync listeners without a database."""

    def __init__(self, publisher: "Publisher") -> None:
        self._publisher = publisher
        self._waiting: list[Outgoing] = []
        self._flushed: list[Outgoing] = []
        self._cancelled: list[str] = []

    def add(self, outgoing: Outgoing) -> None:
        """Take a place in the order of publishes."""
        self._waiting.append(outgoing)

    def withdraw(self, message_id: str) -> bool:
        """Take back a delayed publish that is still waiting here."""
        for outgoing in self._waiting:
            if outgoing.due_at is not None and outgoing.id == message_id:
                self._waiting.remove(outgoing)
                return True
        return False

    def cancel_after_commit(self, message_id: str) -> None:
        """Cancel once the transaction has committed; for queues that cannot take part in it."""
        self._cancelled.append(message_id)

    def savepoint(self) -> tuple[list[Outgoing], list[str]]:
        return self._waiting.copy(), self._cancelled.copy()

    def rollback_to(self, mark: object) -> None:
        assert isinstance(mark, tuple)  # noqa: S101 - our own, from savepoint()
        waiting, cancelled = mark
        self._waiting, self._cancelled = list(waiting), list(cancelled)

    async def before_commit(self) -> None:
        if not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        if self._publisher.transactional:
            await self._publisher.send(batch)
        self._flushed += batch

    async def after_commit(self) -> None:
        publisher = self._publisher
        if not publisher.transactional:
            await publisher.send_committed(self._flushed, self._cancelled)
        await publisher.accepted(self._flushed)

    async def after_rollback(self) -> None:
        self._waiting.clear()
        self._flushed.clear()
        self._cancelled.clear()


class Gathering:
    """The publishes of one tree of sync listeners, where there is no database to hold them in a transaction."""

    __slots__ = ("_ended", "_task", "batch")

    def __init__(self) -> None:
        self.batch: list[Outgoing] = []
        self._task = asyncio.current_task()
        self._ended = False

    def add(self, outgoing: Outgoing) -> None:
        """Take a place in the order of publishes."""
        self.batch.append(outgoing)

    @property
    def open(self) -> bool:
        """Whether it still gathers for this task: one that a listener started inherits the cause, not the place."""
        return not self._ended and self._task is asyncio.current_task()

    def end(self) -> list[Outgoing]:
        """Take no more, and return what was gathered."""
        self._ended = True
        return self.batch


class Publisher:
    """Does what DESIGN 4 says `publish` does, in and out of a transaction."""

    def __init__(
        self,
        mq: MessageQueue,
        db: Database | None,
        clock: Clock,
        listeners: ListenerRegistry,
        broadcasts: Broadcasts,
        metrics: BusMetrics,
        *,
        max_payload: int,
    ) -> None:
        self.registry = RegistryCopy(mq, clock)
        self.transactional = mq.features.transactional
        self.observers: list[Callable[[Outgoing], None]] = []
        self._mq = mq
        self._db = db
        self._clock = clock
        self._listeners = listeners
        self._broadcasts = broadcasts
        self._metrics = metrics
        self._max_payload = max_payload

    def outgoing(
        self,
        event: object,
        *,
        id: str | None = None,  # noqa: A002 - the name that publish() gives it
        headers: Mapping[str, str] | None = None,
        due_at: float | None = None,
    ) -> Outgoing:
        """Return the publish of `event`, caused by whatever is being handled here."""
        cause = current_cause()
        outgoing = Outgoing(event, self._listeners.routes(type(event)), cause, self._clock.time())
        if type(cause) is Outgoing:
            outgoing.depth = cause.depth + 1
            outgoing.root = cause.root
        if id is not None:
            outgoing.explicit_id = valid_id(id)
        if headers:
            outgoing.headers = valid_headers(headers)
        outgoing.due_at = due_at
        return outgoing

    async def publish(self, batch: Sequence[Outgoing]) -> None:
        """Run the sync phases of `batch` in order, then send it, or leave it to the surrounding transaction."""
        transaction = self._db.current() if self._db is not None else None
        if transaction is not None:
            await self._publish_inside(transaction, batch)
            return
        await self._prepare(batch)
        if not any(each.routes.sync for each in batch):
            await self._send_or_gather(batch)
        elif self._db is not None:
            async with self._db.transaction() as transaction:
                await self._run(batch, self._buffer(transaction))
        else:
            await self._publish_gathering(batch)

    async def cancel(self, message_id: str) -> bool:
        """Cancel a delayed publish; inside a transaction, if and only if it commits."""
        transaction = self._db.current() if self._db is not None else None
        if transaction is None:
            return await self._mq.cancel(message_id)
        buffer = self._buffer(transaction)
        if buffer.withdraw(message_id):
            return True
        if self.transactional:
            return await self._mq.cancel(message_id)
        if not await self._mq.scheduled(message_id):
            return False
        buffer.cancel_after_commit(message_id)
        return True

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """Hand to the queue what anybody subscribed to; joins the ambient transaction of a transactional queue."""
        await self._prepare(batch)
        messages = [each.message(self._max_payload) for each in batch if self.registry.routed(each.name)]
        if messages:
            await self._mq.publish(messages)
        frames = [each.encode(self._max_payload) for each in batch if self._is_broadcast(each)]
        if frames:
            await self._mq.broadcast(frames, origin=self._broadcasts.origin)
            self._metrics.broadcasts_sent += len(frames)

    async def send_committed(self, batch: Sequence[Outgoing], cancelled: Iterable[str]) -> None:
        """Hand over what a committed transaction published to a queue that could not take part in it."""
        try:
            if batch:
                await self.send(batch)
            for message_id in cancelled:
                await self._mq.cancel(message_id)
        except QueueError as error:
            self._metrics.publish_failures += len(batch)
            log.error(  # noqa: TRY400 - one line: the cause is the queue's, and named
                "a committed transaction's events could not be published", count=len(batch), error=str(error)
            )

    async def accepted(self, batch: Sequence[Outgoing]) -> None:
        """Do what follows once `batch` is published for good: run this process's own broadcast listeners."""
        self._metrics.published += len(batch)
        for each in batch:
            for observer in self.observers:
                observer(each)
            if each.routes.broadcast:
                await self._broadcasts.deliver(each)

    async def _publish_inside(self, transaction: Transaction, batch: Sequence[Outgoing]) -> None:
        try:
            await self._prepare(batch)
            await self._run(batch, self._buffer(transaction))
        except BaseException as error:
            # Whoever catches this must not commit a half of what was meant to be one.
            transaction.mark_rollback_only(error)
            raise

    async def _publish_gathering(self, batch: Sequence[Outgoing]) -> None:
        root = batch[0].root
        if root is not None and root.open:
            await self._run(batch, root)
            return
        gathering = Gathering()
        for each in batch:
            each.root = gathering
        try:
            await self._run(batch, gathering)
        finally:
            gathered = gathering.end()
        await self._send_directly(gathered)

    async def _send_or_gather(self, batch: Sequence[Outgoing]) -> None:
        root = batch[0].root
        if root is None or not root.open:
            await self._send_directly(batch)
            return
        for each in batch:
            root.add(each)

    async def _send_directly(self, batch: Sequence[Outgoing]) -> None:
        try:
            await self.send(batch)
        except QueueIndeterminate as error:
            self._metrics.publish_failures += len(batch)
            raise PublishIndeterminate(
                f"{batch[0].name} may or may not have been published: {error}", batch[0].id
            ) from error
        except QueueError as error:
            self._metrics.publish_failures += len(batch)
            raise PublishRejected(f"{batch[0].name} was not published: {error}") from error
        await self.accepted(batch)

    async def _prepare(self, batch: Sequence[Outgoing]) -> None:
        """Make sure, before any listener runs, that all that is wanted can be encoded."""
        registry = self.registry
        for each in batch:
            if not registry.knows(each.name):
                await self._try_refresh()
            if registry.routed(each.name) or self._is_broadcast(each):
                each.encode(self._max_payload)

    async def _try_refresh(self) -> None:
        try:
            await self.registry.refresh()
        except QueueError as error:
            # Then nothing is skipped: the queue itself decides, or fails the publish.
            log.warning("the registry of subscriptions could not be read", error=str(error))

    def _is_broadcast(self, outgoing: Outgoing) -> bool:
        return bool(outgoing.routes.broadcast) or self.registry.broadcast(outgoing.name)

    def _buffer(self, transaction: Transaction) -> PublishBuffer:
        return transaction.participant(self, lambda: PublishBuffer(self))

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
            result = listener.call(outgoing.event, delivery)
            if result is not None:
                await result
    finally:
        leave_cause(token)


def refuse_delay(outgoing: Outgoing, registry: RegistryCopy) -> None:
    """Refuse to delay an event that somebody wants now.

    Raises:
        InvalidEvent: it has sync or broadcast listeners.
    """
    names = [each.name for each in (*outgoing.routes.sync, *outgoing.routes.broadcast)]
    if names or registry.broadcast(outgoing.name):
        raise InvalidEvent(
            f"{outgoing.name} cannot be delayed: only async listeners can wait, and it has sync or broadcast ones"
            + (f" ({', '.join(names)})" if names else "")
        )
