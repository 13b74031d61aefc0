"""Broadcast listeners: in every running process, at most once, nothing kept for processes that are down."""

import asyncio
import contextlib
import uuid
from typing import Any

import structlog

from bus.codec import CAUSATION, CORRELATION, Frame, unpack
from bus.delivery import Delivery, enter_cause, leave_cause
from bus.errors import BusError
from bus.listeners import Kind, Listener
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing
from bus.registry import ListenerRegistry
from infra.clock import Clock
from infra.mq import BroadcastReceiver, MessageQueue, QueueError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WAIT = 300.0
"""How long, in seconds, one look for broadcasts waits; whatever arrives, or `wake()`, ends it."""

BACKOFF = 0.5
"""How long, in seconds, to wait after the queue could not be asked."""


class Broadcasts:
    """Receives what other processes broadcast, and hands this process's own to its listeners directly."""

    def __init__(self, mq: MessageQueue, clock: Clock, listeners: ListenerRegistry, metrics: BusMetrics) -> None:
        self.origin = uuid.uuid4().hex
        self._mq = mq
        self._clock = clock
        self._listeners = listeners
        self._metrics = metrics
        self._receiver: BroadcastReceiver | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to receive, if anybody listens; on return nothing broadcast from now on is missed unnoticed."""
        if any(each.kind is Kind.BROADCAST for each in self._listeners.listeners):
            self._receiver = await self._mq.receiver(origin=self.origin)
            self._task = asyncio.create_task(self._receive(self._receiver), name="bus broadcasts")

    async def close(self) -> None:
        """Stop receiving."""
        if self._task is not None and self._receiver is not None:
            self._task.cancel()
            self._receiver.wake()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._receiver.close()
        self._task = self._receiver = None

    async def deliver(self, outgoing: Outgoing) -> None:
        """Run this process's listeners on an event that it broadcast itself."""
        for listener in outgoing.routes.broadcast:
            await self._call(listener, outgoing.event, outgoing.delivery(listener.name))

    async def _receive(self, receiver: BroadcastReceiver) -> None:
        while True:
            try:
                frames, gap = await receiver.receive(WAIT)
            except QueueError as error:
                self._metrics.queue_errors += 1
                log.warning("broadcasts cannot be received", error=str(error))
                await self._clock.sleep(BACKOFF)
                continue
            if gap:
                await self._report_gap()
            for body in frames:
                await self._deliver_frame(body)

    async def _report_gap(self) -> None:
        self._metrics.broadcast_gaps += 1
        for listener in self._listeners.listeners:
            if listener.on_gap is not None:
                try:
                    result = listener.on_gap()
                    if result is not None:
                        await result
                except Exception:
                    self._metrics.broadcast_failures += 1
                    log.exception("on_gap failed", listener=listener.name)

    async def _deliver_frame(self, body: bytes) -> None:
        self._metrics.broadcasts_received += 1
        try:
            frame = unpack(body)
            event_type = self._listeners.events.get(frame.event)
            if event_type is None or frame.event_version > event_type.version:
                return  # newer code speaks of something that nothing here could react to
            event = event_type.decode(frame.payload, frame.event_version)
        except BusError as error:
            self._metrics.broadcast_failures += 1
            log.warning("a broadcast could not be read", error=str(error))
            return
        for listener in self._listeners.routes(event_type.cls).broadcast:
            await self._call(listener, event, delivery_of(frame, listener.name))

    async def _call(self, listener: Listener, event: Any, delivery: Delivery) -> None:  # noqa: ANN401 - any event class
        token = enter_cause(delivery)
        try:
            result = listener.call(event, delivery)
            if result is not None:
                await result
        except Exception:
            self._metrics.broadcast_failures += 1
            log.exception("broadcast listener failed", listener=listener.name)
        finally:
            leave_cause(token)


def delivery_of(frame: Frame, listener: str, attempt: int = 1) -> Delivery:
    """Return what a handler gets to know about a message that came over the wire."""
    headers = dict(frame.headers)
    return Delivery(
        id=frame.id,
        event=frame.event,
        listener=listener,
        attempt=attempt,
        published_at=frame.published_at,
        correlation_id=headers.pop(CORRELATION, frame.id),
        causation_id=headers.pop(CAUSATION, None),
        ordering_key=frame.ordering_key,
        headers=headers,
    )
