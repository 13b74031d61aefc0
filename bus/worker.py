"""The worker: one session after another, for as long as the process lives."""

import asyncio
import contextlib
import os
import socket
import uuid
from random import Random

import structlog

from bus.handling import Handling
from bus.inbox import Inbox
from bus.lane import Lane
from bus.metrics import BusMetrics, ListenerMetrics
from bus.options import BusOptions
from bus.registry import ListenerRegistry
from bus.session import Session
from bus.threads import ThreadPool
from infra.clock import Clock
from infra.db import DatabaseError
from infra.mq import Consumer, MessageQueue, QueueError, WorkerInfo

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_BACKOFF = 5.0
"""The longest wait, in seconds, between two attempts to join."""

LEAVE_PATIENCE = 2.0
"""How long, in seconds, a worker that is stopped while it joins waits for that, so that it can sign off."""

PRUNE_EVERY = 600.0
"""How often, in seconds, the inbox forgets what it need not remember."""


class Worker:
    """Handles the deliveries of every durable listener of this process."""

    def __init__(
        self,
        mq: MessageQueue,
        inbox: Inbox | None,
        clock: Clock,
        listeners: ListenerRegistry,
        options: BusOptions,
        metrics: BusMetrics,
        random: Random,
    ) -> None:
        self._mq = mq
        self._inbox = inbox
        self._clock = clock
        self._durable = listeners.durable()
        self._options = options
        self._metrics = metrics
        self._threads = ThreadPool("bus handler")
        self.handling = Handling(listeners.events, inbox, clock, self._threads, random, max_crashes=options.max_crashes)
        for name in self._durable:
            metrics.listeners.setdefault(name, ListenerMetrics())

    async def run(self) -> None:
        """Work until cancelled; the cancellation stops it gracefully."""
        pruning = asyncio.create_task(self._prune(), name="bus inbox")
        try:
            while True:
                await self._run_session(await self._join())
        finally:
            pruning.cancel()
            self._threads.close()

    def lanes(self) -> dict[str, Lane]:
        """Return a new lane for every listener."""
        return {name: Lane(each, self._metrics.listeners[name]) for name, each in self._durable.items()}

    def info(self) -> WorkerInfo:
        """Return the identity of a new incarnation."""
        return WorkerInfo(
            id=uuid.uuid4().hex,
            subscriptions=frozenset(self._durable),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    async def _run_session(self, consumer: Consumer) -> None:
        session = Session(consumer, self.lanes(), self.handling, self._clock, self._options, self._metrics)
        log.info("worker started", worker=consumer.info.id, listeners=len(self._durable))
        try:
            await session.run()
        finally:
            log.info("worker stopped", worker=consumer.info.id)

    async def _join(self) -> Consumer:
        backoff = 0.1
        while True:
            try:
                return await self._join_or_leave()
            except QueueError as error:
                self._metrics.queue_errors += 1
                log.warning("the worker cannot join the queue", error=str(error), retry_in=round(backoff, 2))
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF)

    async def _join_or_leave(self) -> Consumer:
        joining = asyncio.ensure_future(self._mq.consumer(self.info()))
        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            # The queue may know of it by now: others would take it for alive until its lease ends.
            left = asyncio.ensure_future(_leave_when_joined(joining))
            if not await self._clock.wait(_done(left), LEAVE_PATIENCE):
                left.cancel()
            raise

    async def _prune(self) -> None:
        if self._inbox is None or not any(each.once for each in self._durable.values()):
            return
        while True:
            await self._clock.sleep(PRUNE_EVERY)
            try:
                await self._inbox.prune()
            except DatabaseError as error:
                log.warning("the inbox could not be pruned", error=str(error))


async def _leave_when_joined(joining: asyncio.Future[Consumer]) -> None:
    with contextlib.suppress(QueueError):
        await (await joining).close()


def _done(task: asyncio.Future[None]) -> asyncio.Event:
    event = asyncio.Event()
    task.add_done_callback(lambda _: event.set())
    return event
