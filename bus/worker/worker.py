"""The worker: runs one session after another until the process ends."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Sequence
from random import Random

import structlog

from bus.listener_table import ListenerTable
from bus.metrics import BusMetrics, ListenerMetrics
from bus.middleware import Middleware
from bus.options import BusOptions
from bus.supervisor import Supervisor, ends_task
from bus.worker.claim_limits import CLAIM_LIMITS
from bus.worker.executor import Executor
from bus.worker.inbox import PRUNED_AT_ONCE, Inbox
from bus.worker.lane import Lane
from bus.worker.session import Session
from bus.worker.threads import ThreadPool
from infra.clock import Clock
from infra.mq import Consumer, MessageQueue, QueueError, WorkerInfo

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LEAVE_TIMEOUT = 2.0
"""How long, in seconds, a worker that is cancelled while it registers waits for the reply, to unregister."""

PRUNE_EVERY = 600.0
"""Seconds between two prunings of the inbox."""

PRUNE_AGAIN = 0.02
"""Seconds until the next pruning if one transaction did not delete all expired rows."""


class Worker:
    """Handles the deliveries of every durable listener of this process."""

    def __init__(
        self,
        mq: MessageQueue,
        inbox: Inbox | None,
        clock: Clock,
        listeners: ListenerTable,
        options: BusOptions,
        metrics: BusMetrics,
        random: Random,
        supervisor: Supervisor,
        middleware: Sequence[Middleware],
    ) -> None:
        self._mq = mq
        self._inbox = inbox
        self._clock = clock
        self._durable = listeners.durable()
        self._options = options
        self._metrics = metrics
        self._supervisor = supervisor
        self._health = supervisor.health("worker")
        self._threads = ThreadPool("bus handler")
        self.executor = Executor(
            listeners.events,
            inbox,
            clock,
            self._threads,
            random,
            middleware={
                name: layers
                for name, each in self._durable.items()
                if (layers := (*middleware, *each.options.middleware))
            },
            queue_time=mq.time,
            max_crashes=options.max_crashes,
        )
        for name in self._durable:
            metrics.listeners.setdefault(name, ListenerMetrics())

    async def run(self) -> None:
        """Work until cancelled, then shut down gracefully."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        for each in self._durable.values():
            if each.unscoped:
                log.warning("ordering scope undeclared", listener=each.name, events=each.unscoped)
        pruning = self._supervisor.start("prune inbox", self._prune)
        try:
            while True:
                try:
                    await self._run_session(await self._join_or_leave())
                except BaseException as error:
                    if ends_task(task, error, cancelled_before):
                        raise
                    if task is not None and task.cancelling() > cancelled_before:
                        raise asyncio.CancelledError from error  # the session failed during its shutdown
                    self._metrics.queue_errors += isinstance(error, QueueError)
                    await self._clock.sleep(self._health.failed(error))
        finally:
            self._threads.close()
            await pruning.stop()

    def lanes(self) -> dict[str, Lane]:
        """Return a new lane for each durable listener, by name."""
        return {name: Lane(each, self._metrics.listeners[name]) for name, each in self._durable.items()}

    async def join(self) -> Consumer:
        """Register a new incarnation in the queue."""
        info = WorkerInfo(
            id=uuid.uuid4().hex,
            subscriptions=frozenset(self._durable),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        return await self._mq.consumer(info, CLAIM_LIMITS)

    async def _run_session(self, consumer: Consumer) -> None:
        session = Session(
            consumer,
            self.lanes(),
            self.executor,
            self._clock,
            self._options,
            self._metrics,
            self._supervisor,
            on_progress=self._health.succeeded,
        )
        log.info("worker started", worker=consumer.info.id, listeners=len(self._durable))
        try:
            await session.run()
        finally:
            log.info("worker stopped", worker=consumer.info.id)

    async def _join_or_leave(self) -> Consumer:
        joining = asyncio.ensure_future(self.join())
        try:
            await asyncio.wait((joining,))
        except asyncio.CancelledError:
            # The queue may have registered this worker: it would count as alive until its lease expires.
            left = asyncio.ensure_future(_leave_when_joined(joining))
            if not await self._clock.wait(_done(left), LEAVE_TIMEOUT):
                left.cancel()
            raise
        return joining.result()

    async def _prune(self) -> None:
        if self._inbox is None or not any(each.options.once for each in self._durable.values()):
            return
        pause = PRUNE_EVERY
        while True:
            await self._clock.sleep(pause)
            pause = PRUNE_AGAIN if await self._inbox.prune() >= PRUNED_AT_ONCE else PRUNE_EVERY


async def _leave_when_joined(joining: asyncio.Future[Consumer]) -> None:
    with contextlib.suppress(Exception):  # its lease expires by itself, and it has no claims
        await (await joining).close()


def _done(task: asyncio.Future[None]) -> asyncio.Event:
    event = asyncio.Event()
    task.add_done_callback(lambda _: event.set())
    return event
