"""The bus: what services see of it."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from random import Random, SystemRandom

from bus.broadcasts import Broadcasts
from bus.declaration import Declaration
from bus.delivery import correlation
from bus.errors import BusFrozen, BusNotStarted
from bus.events import EventType
from bus.listener_options import DEFAULT, Default, ListenerOptions
from bus.listener_table import ListenerTable
from bus.listeners import DEFAULT_RETRY, Handler, Listener, ListenerKind, OnExhausted, OnGap
from bus.metrics import BusMetrics
from bus.options import BusOptions
from bus.outgoing import Outgoing, due_in, due_when, valid_id
from bus.publishing.publisher import Publisher, refuse_delay
from bus.publishing.rejected_rows import RejectedRows
from bus.registration import Registration
from bus.retry import Retry
from bus.supervisor import TaskState, bus_supervisor
from bus.worker.inbox import Inbox
from bus.worker.worker import Worker
from infra.clock import Clock, SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from infra.ownership import LoopOwner


class Bus:
    """Typed events between services: sync listeners take part in the publish, async ones run in a worker.

    A new bus is open: services add their listeners in their constructors. `start()` closes the registration and opens
    publishing. `run()` is the worker. The queue and the database belong to the caller, who opens and closes them.

    From `start()` to `close()` it belongs to the running event loop: every use in another one, in a thread or in a
    forked process raises `WrongEventLoop`. A thread publishes by `asyncio.run_coroutine_threadsafe`.
    """

    def __init__(
        self,
        mq: MessageQueue,
        db: Database | None = None,
        *,
        clock: Clock | None = None,
        options: BusOptions | None = None,
        random: Random | None = None,
    ) -> None:
        self.mq = mq
        self.options = options or BusOptions()
        self.metrics = BusMetrics()
        self._db = db
        self._clock = clock or SystemClock()
        self._supervisor = bus_supervisor(self._clock)
        self._random = random or SystemRandom()
        self._listeners = ListenerTable()
        self._registration = Registration(self._listeners, self.options, has_db=db is not None)
        self._broadcasts = Broadcasts(mq, self._clock, self._listeners, self.metrics, self._supervisor)
        self._publisher = Publisher(
            mq,
            db,
            self._clock,
            self._listeners,
            self._broadcasts,
            self.metrics,
            self._supervisor,
            max_payload=self.options.max_payload,
        )
        self._owner = LoopOwner("the bus")
        self._declaration = Declaration(
            mq, self._clock, self._listeners, self._publisher, self._broadcasts, self._supervisor
        )

    # --- registration -----------------------------------------------------------------------------------------------

    def add_sync_listener(self, handler: Handler) -> None:
        """Call `handler` in the publisher's process and transaction, in order of registration; its error fails those.

        Raises:
            InvalidListener, InvalidEvent: the message names the handler and what is expected.
            BusFrozen: the bus has started.
        """
        self._registration.add(ListenerKind.SYNC, handler, ListenerOptions())

    def add_async_listener(
        self,
        handler: Handler,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        retry: Retry = DEFAULT_RETRY,
        timeout: float | Default | None = DEFAULT,
        concurrency: int | None = None,
        once: bool = False,
    ) -> None:
        """Call `handler` in the worker, once per event or, after a failure or a crash, again.

        `name` is its durable identity, by default `<service package>.<method>`; `aliases` are former names. `timeout`
        is in seconds, None for none; `concurrency` bounds how many run at once in a process. With `once` the handler
        runs in a transaction: its database effects and its publishes happen once per event. A plain `def` handler
        runs in a thread, which cannot be stopped: it takes neither `timeout` nor `once`.

        Raises:
            InvalidListener, InvalidEvent: the message names the handler and what is expected.
            BusFrozen: the bus has started.
        """
        self._registration.add(
            ListenerKind.ASYNC,
            handler,
            ListenerOptions(
                name=name, aliases=aliases, retry=retry, timeout=timeout, concurrency=concurrency, once=once
            ),
        )

    def add_async_ordered_listener(
        self,
        handler: Handler,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        retry: Retry = DEFAULT_RETRY,
        timeout: float | Default | None = DEFAULT,
        concurrency: int | None = None,
        once: bool = False,
        on_exhausted: OnExhausted = "skip",
    ) -> None:
        """Do the same, but one event at a time per ordering key, in publish order.

        A retry holds up its own key only. After the last attempt the event becomes a dead letter and the key goes on
        ("skip"), or the key stays blocked until `beneath bus unblock` ("block"). `concurrency` counts keys.

        Raises:
            InvalidListener, InvalidEvent: the message names the handler and what is expected.
            BusFrozen: the bus has started.
        """
        self._registration.add(
            ListenerKind.ORDERED,
            handler,
            ListenerOptions(
                name=name,
                aliases=aliases,
                retry=retry,
                timeout=timeout,
                concurrency=concurrency,
                once=once,
                on_exhausted=on_exhausted,
            ),
        )

    def add_broadcast_listener(self, handler: Handler, *, on_gap: OnGap | None = None) -> None:
        """Call `handler` in every running process, at most once; nothing is kept for processes that are down.

        `on_gap` is called after any time in which broadcasts may have been missed. An error is logged, and that is all.

        Raises:
            InvalidListener, InvalidEvent: the message names the handler and what is expected.
            BusFrozen: the bus has started.
        """
        self._registration.add(ListenerKind.BROADCAST, handler, ListenerOptions(on_gap=on_gap))

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every listener of this process, in order of registration."""
        return self._listeners.listeners

    @property
    def event_types(self) -> Mapping[str, EventType]:
        """Every wire name known to this process, former ones included."""
        return self._listeners.events

    @property
    def has_outbox(self) -> bool:
        """Whether what transactions publish waits in an outbox while the queue is away."""
        return self._publisher.relay is not None

    async def outbox_backlog(self) -> tuple[int, float | None]:
        """Return how many rows wait in the outbox, and since when the oldest does (seconds since the epoch)."""
        return await self._publisher.outbox_backlog()

    async def outbox_rejected(self) -> int:
        """Return how many rows of the outbox the queue refused for good; see `beneath bus outbox`."""
        return await RejectedRows(self._db).count() if self._db is not None and self.has_outbox else 0

    # --- publishing -------------------------------------------------------------------------------------------------

    async def publish(
        self,
        event: object,
        *,
        id: str | None = None,  # noqa: A002 - the message's id, by its own name
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Run the sync listeners, then hand the event to the queue; inside a transaction, if and only if it commits.

        With `id` the event is accepted once within the dedupe window (2 minutes by default), which makes a publish
        whose outcome is unknown repeatable. On return every listener subscribed by then has its delivery or, inside
        a transaction, will have it when the transaction commits.

        Raises:
            InvalidEvent: the event is not what its class says, or `id` or `headers` cannot go with it; no listener ran.
            BusNotStarted: `start()` has not returned.
            PublishRejected: nothing was stored, by the queue or by the database.
            PublishIndeterminate: it may have been stored; publish again with the same id.
            DatabaseError, QueueError: inside a transaction, COMMIT raises what kept it from being stored.
            Exception: whatever a sync listener raised; the transaction can only be rolled back.
        """
        if not self._owner.is_here():  # written out, for it is called for every event
            self._require_started("publish")
        publisher = self._publisher
        outgoing = publisher.outgoing(event, id, headers)
        if publisher.stays_here(outgoing):
            await publisher.publish_here(outgoing)
        else:
            await publisher.publish([outgoing])

    async def publish_many(self, events: Iterable[object]) -> None:
        """Run all sync phases in order, then hand over all the events in one step; atomic only inside a transaction.

        A batch whose outcome is unknown cannot be repeated by id: publish it inside a transaction, or each event with
        an `id` of its own, where that matters.

        Raises: what `publish` raises.
        """
        self._require_started("publish")
        if batch := self._publisher.outgoing_many(events):
            await self._publisher.publish(batch)

    async def publish_delayed(
        self,
        event: object,
        delay: float | timedelta,
        *,
        id: str | None = None,  # noqa: A002 - the message's id, by its own name
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Publish an event that reaches its async listeners `delay` seconds from now, and return the message's id.

        It reaches those subscribed when it is accepted, no earlier than asked, and never after `cancel(id)`.

        Raises:
            InvalidEvent: the delay is not from 0 seconds to 100 years, or the event has sync or broadcast listeners,
                which cannot wait; or what `publish` raises.
        """
        self._require_started("publish")
        return await self._publish_at(event, due_in(delay, await self._publisher.time()), id, headers)

    async def publish_scheduled(
        self,
        event: object,
        when: datetime,
        *,
        id: str | None = None,  # noqa: A002 - the message's id, by its own name
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Publish an event that reaches its async listeners at `when`, which has a time zone; a past one is now.

        Raises:
            InvalidEvent: `when` is no datetime, has no time zone, or is after the year 9999 in UTC; or what
                `publish_delayed` raises.
        """
        return await self._publish_at(event, due_when(when), id, headers)

    async def cancel(self, message_id: str) -> bool:
        """Cancel a delayed event, whatever process published it; inside a transaction, if and only if that commits.

        Returns False when it has fired, was cancelled before, or is unknown. After True it never fires, with one
        exception: inside a transaction with an outbox, the queue is told after the commit of what it has or is just
        being sent, and if it is unavailable and cannot be asked, the answer is True.

        Raises:
            InvalidEvent: it cannot be a message's id.
            CancelFailed: the queue did not say that it is cancelled, or the database failed; it is safe to ask again.
        """
        self._require_started("cancel an event")
        return await self._publisher.cancel(valid_id(message_id))

    def correlation(self, correlation_id: str) -> AbstractContextManager[None]:
        """Give everything published inside the block this correlation id, and all that follows from it.

        Raises:
            InvalidEvent: it is longer or other than a message's id may be.
        """
        return correlation(valid_id(correlation_id, "a correlation id"))

    def observe(self, observer: Callable[[Outgoing], None]) -> None:
        """Call `observer` with every publish that was accepted: committed, or sent. For test kits and the like."""
        self._publisher.observers.append(observer)

    # --- running ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Close the registration, declare every durable subscription in the queue, and open publishing.

        Every event accepted after it returns reaches the listeners of this process, whoever publishes it.

        With an outbox a queue that is down does not keep the bus from starting: what is published waits in the
        outbox until the queue is there and knows this process's listeners.

        Raises:
            BusError: the queue cannot be used within `connect_timeout`, or what it keeps contradicts the code.
            BusFrozen: it was called before.
        """
        if self._listeners.frozen:
            raise BusFrozen("the bus was started before")
        self._listeners.frozen = True
        await self._declaration.start(self.options.connect_timeout)
        self._owner.enter()

    async def run(self) -> None:
        """Be the worker: handle deliveries until cancelled, then stop within the grace period.

        Raises:
            BusNotStarted: `start()` has not returned.
            BackgroundTaskFailed: one of the bus's background tasks failed too often in a row.
        """
        self._require_started("run the worker")
        async with self._supervisor.guard():
            await self._declaration.done.wait()
            await self.worker().run()

    async def watch(self) -> None:
        """Wait until this process should end because of the bus; for processes that do not `run()` the worker.

        Raises:
            BackgroundTaskFailed: one of the bus's background tasks failed too often in a row.
        """
        await self._supervisor.watch()

    @property
    def background_tasks(self) -> list[TaskState]:
        """The state of every background task of the bus in this process, by name."""
        return self._supervisor.states()

    def worker(self) -> Worker:
        """Return a worker over this bus's listeners, not yet running."""
        inbox = Inbox(self._db, self.mq, retention=self.options.inbox_retention) if self._db is not None else None
        return Worker(
            self.mq, inbox, self._clock, self._listeners, self.options, self.metrics, self._random, self._supervisor
        )

    async def close(self) -> None:
        """Stop publishing and receiving. The queue and the database stay open: they are the caller's."""
        self._owner.is_here()
        self._owner.leave()
        await self._declaration.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _publish_at(
        self, event: object, due_at: float, id_: str | None, headers: Mapping[str, str] | None
    ) -> str:
        self._require_started("publish")
        outgoing = self._publisher.outgoing(event, id_, headers)
        outgoing.due_at = due_at
        refuse_delay(outgoing, self._publisher.subscriptions)
        await self._publisher.publish([outgoing])
        return outgoing.id

    def _require_started(self, what: str) -> None:
        if not self._owner.is_here():
            raise BusNotStarted(
                f"cannot {what}: the bus is not running; call `await bus.start()` first, and not after close()"
            )
