"""The bus: the API by which services add listeners and publish events."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from random import Random, SystemRandom
from typing import Unpack

from bus.broadcasts import Broadcasts
from bus.declaration import Declaration
from bus.delivery import correlation
from bus.errors import BusFrozen, BusNotStarted, InvalidListener
from bus.events import EventType
from bus.listener_options import AsyncOptions, BroadcastOptions, OrderedOptions
from bus.listener_table import ListenerTable
from bus.listeners import Handler, Listener, ListenerKind
from bus.metrics import BusMetrics
from bus.middleware import Middleware, check_middleware
from bus.options import BusOptions
from bus.outgoing import Outgoing, due_in, due_when, valid_id
from bus.publishing.hooks import PublishHook
from bus.publishing.publisher import Publisher, refuse_delay
from bus.publishing.rejected_rows import RejectedRows
from bus.registration import Registration
from bus.supervisor import TaskState, bus_supervisor
from bus.worker.inbox import Inbox
from bus.worker.worker import Worker
from infra.clock import Clock, SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from infra.ownership import LoopOwner

ADD_BEFORE = "add it before bus.start()"


class Bus:
    """The event bus of one process: adds listeners, publishes events, and runs the worker.

    Services add their listeners in their constructors. `start()` closes the registration and opens publishing; `run()`
    is the worker. The caller opens and closes the queue and the database.

    From `start()` to `close()` the bus belongs to the running event loop: a use in another event loop, a thread or a
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
        self._middleware: list[Middleware] = []
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
            propagate=self.options.propagate,
        )
        self._owner = LoopOwner("the bus")
        self._declaration = Declaration(
            mq, self._clock, self._listeners, self._publisher, self._broadcasts, self._supervisor
        )

    # --- registration -----------------------------------------------------------------------------------------------

    def add_sync_listener(self, handler: Handler) -> None:
        """Add a listener that runs inside `publish`, in the publisher's transaction, in order of registration.

        `publish` raises the handler's error; the transaction can then only be rolled back.

        Raises:
            InvalidListener, InvalidEvent: the handler or an event class is invalid; the message says why.
            BusFrozen: the bus has started.
        """
        self._registration.add(ListenerKind.SYNC, handler, {})

    def add_async_listener(self, handler: Handler, **options: Unpack[AsyncOptions]) -> None:
        """Add a listener that runs in a worker after the commit, and again after a failure or a crash.

        `AsyncOptions` describes the options.

        Raises:
            InvalidListener, InvalidEvent: the handler, an option or an event class is invalid; the message says why.
            BusFrozen: the bus has started.
            TypeError: there is no option with this name.
        """
        self._registration.add(ListenerKind.ASYNC, handler, options)

    def add_async_ordered_listener(self, handler: Handler, **options: Unpack[OrderedOptions]) -> None:
        """Add an async listener that handles one event at a time per ordering key, in publish order.

        A retry blocks only its own key. `OrderedOptions` describes the options.

        Raises: the errors of `add_async_listener`.
        """
        self._registration.add(ListenerKind.ORDERED, handler, options)

    def add_broadcast_listener(self, handler: Handler, **options: Unpack[BroadcastOptions]) -> None:
        """Add a listener that every running process calls, at most once per event; processes that are down miss it.

        Errors are logged, not retried. `BroadcastOptions` describes the options.

        Raises: the errors of `add_async_listener`.
        """
        self._registration.add(ListenerKind.BROADCAST, handler, options)

    def add_middleware(self, middleware: Middleware) -> None:
        """Add a function that runs around each attempt of all async listeners; the first one added is the outermost.

            async def with_tenant(event: object, delivery: Delivery, call_next: CallNext) -> None:
                with tenant(delivery.headers["tenant"]):
                    await call_next()

        It runs within the attempt's timeout, outside of the transaction of a `once` listener. What it raises is the
        attempt's outcome. It cannot suppress the handler's error, and if it does not await `call_next()`, the attempt
        fails.

        Raises:
            InvalidListener: it is not an `async def` function of an event, a delivery and `call_next`.
            BusFrozen: the bus has started.
        """
        self._listeners.require_open("a middleware", ADD_BEFORE)
        try:
            self._middleware.append(check_middleware(middleware))
        except ValueError as error:
            raise InvalidListener(str(error)) from error

    def add_publish_hook(self, hook: PublishHook) -> None:
        """Add a plain function that is called with each `Publishing` before the event's sync listeners run.

        It may set headers. What it raises, `publish` raises, and no listener has run. Hooks are called in the order in
        which they were added, once per event, also for `publish_many` and delayed events.

        Raises:
            InvalidListener: it is not a plain function of one argument.
            BusFrozen: the bus has started.
        """
        self._listeners.require_open("a publish hook", ADD_BEFORE)
        self._publisher.stamper.add(hook)

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """The middleware of all async listeners, outermost first."""
        return tuple(self._middleware)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All listeners of this process, in order of registration."""
        return self._listeners.listeners

    @property
    def event_types(self) -> Mapping[str, EventType]:
        """The event types of this process by wire name, aliases included."""
        return self._listeners.events

    @property
    def has_outbox(self) -> bool:
        """Whether committed events wait in an outbox until the relay has sent them to the queue."""
        return self._publisher.relay is not None

    async def outbox_backlog(self) -> tuple[int, float | None]:
        """Return the number of unsent outbox rows, and when the oldest was written (seconds since the epoch)."""
        return await self._publisher.dispatch.backlog()

    async def outbox_rejected(self) -> int:
        """Return the number of rejected outbox rows; `beneath bus outbox` lists them."""
        return await RejectedRows(self._db).count() if self._db is not None and self.has_outbox else 0

    # --- publishing -------------------------------------------------------------------------------------------------

    async def publish(
        self,
        event: object,
        *,
        id: str | None = None,  # noqa: A002 - named like the field of a message
        headers: Mapping[str, str] | None = None,
        expires_in: float | timedelta | None = None,
    ) -> None:
        """Run the sync listeners, then publish the event to the queue; inside a transaction, if and only if it commits.

        With `expires_in`, in seconds, or an `event_lifetime` of its class, the event expires: async listeners begin no
        attempt once that time has passed since the publish.

        With `id` the queue accepts the event once within the dedupe window (2 minutes by default), so that a publish
        with an unknown outcome can be repeated. On return every listener subscribed by then has its delivery or, inside
        a transaction, will have it when the transaction commits.

        Raises:
            InvalidEvent: the event does not match its class, or `id`, `headers` or `expires_in` are invalid; no
                listener ran.
            BusNotStarted: `start()` has not returned.
            PublishRejected: neither the queue nor the database stored the event.
            PublishIndeterminate: the event may have been stored; publish it again with the same id.
            DatabaseError, QueueError: raised by the surrounding transaction's COMMIT, which did not store the event.
            Exception: the error of a sync listener; the transaction can only be rolled back.
        """
        if not self._owner.is_here():  # inlined, because it runs for every event
            self._require_started("publish")
        publisher = self._publisher
        outgoing = publisher.outgoing(event, id, headers, expires_in)
        if publisher.is_local(outgoing):
            await publisher.publish_locally(outgoing)
        else:
            await publisher.publish([outgoing])

    async def publish_many(self, events: Iterable[object]) -> None:
        """Run the sync listeners of all events in order, then publish all in one step; atomic only in a transaction.

        A batch with an unknown outcome cannot be repeated by id. Where that matters, publish the batch inside a
        transaction, or publish each event with an `id` of its own.

        Raises: the errors of `publish`.
        """
        self._require_started("publish")
        if batch := self._publisher.outgoing_many(events):
            await self._publisher.publish(batch)

    async def publish_delayed(
        self,
        event: object,
        delay: float | timedelta,
        *,
        id: str | None = None,  # noqa: A002 - named like the field of a message
        headers: Mapping[str, str] | None = None,
        expires_in: float | timedelta | None = None,
    ) -> str:
        """Publish an event that reaches its async listeners `delay` seconds from now, and return the message's id.

        The event reaches the listeners that are subscribed when the queue accepts it. It is never delivered early, nor
        after `cancel(id)`. `expires_in` counts from the time at which the event is due.

        Raises: the errors of `publish`, and:
            InvalidEvent: the delay is not between 0 seconds and 100 years, or the event has sync or broadcast
                listeners, which cannot be delayed.
        """
        self._require_started("publish")
        return await self._publish_at(
            event, due_in(delay, await self._publisher.dispatch.time()), id, headers, expires_in
        )

    async def publish_scheduled(
        self,
        event: object,
        when: datetime,
        *,
        id: str | None = None,  # noqa: A002 - named like the field of a message
        headers: Mapping[str, str] | None = None,
        expires_in: float | timedelta | None = None,
    ) -> str:
        """Publish an event that reaches its async listeners at `when`, and return the message's id.

        `when` must have a time zone; a time in the past means now.

        Raises: the errors of `publish_delayed`, and:
            InvalidEvent: `when` is not a datetime, has no time zone, or is after the year 9999 in UTC.
        """
        return await self._publish_at(event, due_when(when), id, headers, expires_in)

    async def cancel(self, message_id: str) -> bool:
        """Cancel a delayed event that any process published; inside a transaction, if and only if it commits.

        Return False if the event became due, was cancelled before, or is unknown. After True it is never delivered,
        with one exception: inside a transaction with an outbox, an event that was sent to the queue, or is being sent,
        is cancelled there after the commit, and if the queue is unavailable and cannot be asked, the result is True.

        Raises:
            InvalidEvent: `message_id` is not a valid message id.
            CancelFailed: the queue did not confirm the cancellation, or the database failed; calling again is safe.
        """
        self._require_started("cancel an event")
        return await self._publisher.cancel(valid_id(message_id))

    def correlation(self, correlation_id: str) -> AbstractContextManager[None]:
        """Set the correlation id of everything that is published inside the block, and of all that follows from it.

        Raises:
            InvalidEvent: `correlation_id` is invalid; the rules are those of a message id.
        """
        return correlation(valid_id(correlation_id, "a correlation id"))

    def observe(self, observer: Callable[[Outgoing], None]) -> None:
        """Call `observer` with every publish once it was committed or sent; meant for test kits."""
        self._publisher.observers.append(observer)

    # --- running ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Close the registration, declare every durable subscription in the queue, and open publishing.

        Every event accepted after `start` returns reaches the listeners of this process, whichever process publishes
        it. With an outbox the bus also starts while the queue is unavailable: events wait in the outbox until the queue
        is reachable and has this process's subscriptions.

        Raises:
            BusError: the queue was unavailable for `connect_timeout`, or its subscriptions contradict the code.
            BusFrozen: `start` was called before.
        """
        if self._listeners.frozen:
            raise BusFrozen("bus.start() was called twice: construct a new Bus to start again")
        self._listeners.frozen = True
        await self._declaration.start(self.options.connect_timeout)
        self._owner.enter()

    async def run(self) -> None:
        """Run the worker: handle deliveries until cancelled, then shut down within the grace period.

        Raises:
            BusNotStarted: `start()` has not returned.
            BackgroundTaskFailed: one of the bus's background tasks failed too often in a row.
        """
        self._require_started("run the worker")
        async with self._supervisor.guard():
            await self._declaration.done.wait()
            await self.worker().run()

    async def watch(self) -> None:
        """Wait until the bus requires this process to end; for processes that do not `run()` the worker.

        Raises:
            BackgroundTaskFailed: one of the bus's background tasks failed too often in a row.
            SystemExit, KeyboardInterrupt: a broadcast listener raised it.
        """
        await self._supervisor.watch()

    @property
    def background_tasks(self) -> list[TaskState]:
        """The states of the bus's background tasks in this process, by name."""
        return self._supervisor.states()

    def worker(self) -> Worker:
        """Return a new worker for this bus's listeners, not yet running."""
        inbox = Inbox(self._db, self.mq, retention=self.options.inbox_retention) if self._db is not None else None
        return Worker(
            self.mq,
            inbox,
            self._clock,
            self._listeners,
            self.options,
            self.metrics,
            self._random,
            self._supervisor,
            self._middleware,
        )

    async def close(self) -> None:
        """Stop publishing and receiving; the queue and the database stay open, for the caller to close."""
        self._owner.is_here()
        self._owner.leave()
        await self._declaration.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _publish_at(
        self, event: object, due_at: float, id_: str | None, headers: Mapping[str, str] | None, expires_in: object
    ) -> str:
        self._require_started("publish")
        outgoing = self._publisher.outgoing(event, id_, headers, expires_in)
        outgoing.due_at = due_at
        refuse_delay(outgoing, self._publisher.subscriptions)
        await self._publisher.publish([outgoing])
        return outgoing.id

    def _require_started(self, what: str) -> None:
        if not self._owner.is_here():
            raise BusNotStarted(
                f"cannot {what}: the bus is not running; call `await bus.start()` first, and not after close()"
            )
