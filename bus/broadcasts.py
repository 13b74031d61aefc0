"""Broadcasts: receives them, and runs this process's broadcast listeners, at most once per event."""

import asyncio
import contextlib
import math
import uuid
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from bus.codec import Frame, decode_frame
from bus.delivery import Delivery, delivery_of, enter_cause
from bus.errors import BusError
from bus.events import EventType
from bus.handler_calls import exit_in, finish_call
from bus.listener_options import OnGap
from bus.listener_table import ListenerTable
from bus.listeners import Listener, ListenerKind
from bus.metrics import BusMetrics
from bus.outgoing import Outgoing
from bus.stopping import StopSequence
from bus.supervisor import SupervisedTask, Supervisor, ends_task
from infra.clock import Clock
from infra.failures import describe, render_traceback
from infra.mq import BroadcastReceiver, MessageQueue, QueueError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RECEIVE_WAIT = 300.0
"""How long, in seconds, one receive waits; a broadcast or `wake()` ends the wait."""

MAX_BACKOFF = 0.5
"""The longest delay, in seconds, before a failed receive is repeated."""

CANCEL_TIMEOUT = 2.0
"""How long, in seconds, to wait for the end of a cancelled listener."""


class Broadcasts:
    """Runs this process's broadcast listeners on broadcasts of other processes, and directly on those of its own.

    Each call of a listener has a task and a context of its own, so that its errors, cancellations and context variables
    reach neither the publisher, nor the receiving task, nor another listener.
    """

    def __init__(
        self,
        mq: MessageQueue,
        clock: Clock,
        listeners: ListenerTable,
        metrics: BusMetrics,
        supervisor: Supervisor,
    ) -> None:
        self.origin = uuid.uuid4().hex
        self._mq = mq
        self._clock = clock
        self._listeners = listeners
        self._metrics = metrics
        self._supervisor = supervisor
        self._receiver: BroadcastReceiver | None = None
        self._task: SupervisedTask | None = None
        self._cancelled: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start receiving if there are broadcast listeners; a broadcast missed after that is reported as a gap."""
        if any(each.kind is ListenerKind.BROADCAST for each in self._listeners.listeners):
            self._receiver = receiver = await self._mq.receiver(origin=self.origin)
            self._task = self._supervisor.start("broadcasts", partial(self._receive, receiver), max_backoff=MAX_BACKOFF)

    async def close(self) -> None:
        """Stop receiving."""
        if self._task is not None and self._receiver is not None:
            self._task.cancel()
            self._receiver.wake()
            await self._task.stop()
            await self._receiver.close()
        self._task = self._receiver = None

    async def deliver(self, outgoing: Outgoing) -> None:
        """Run this process's listeners on an event that this process broadcast."""
        for listener in outgoing.local.broadcast:
            await self._run_alone(listener, _call_here(listener, outgoing), "handler")

    async def _receive(self, receiver: BroadcastReceiver) -> None:
        while True:
            try:
                frames, gap = await receiver.receive(RECEIVE_WAIT)
            except QueueError:
                self._metrics.queue_errors += 1
                raise
            if self._task is not None:
                self._task.succeeded()
            if gap:
                await self._report_gap()
            for body in frames:
                await self._deliver_frame(body)

    async def _report_gap(self) -> None:
        self._metrics.broadcast_gaps += 1
        for listener in self._listeners.listeners:
            if listener.options.on_gap is not None:
                await self._run_alone(listener, _call_on_gap(listener.options.on_gap), "on_gap")

    async def _deliver_frame(self, body: bytes) -> None:
        self._metrics.broadcasts_received += 1
        try:
            frame = decode_frame(body)
            event_type = self._listeners.events.get(frame.event)
        except BusError as error:
            self._metrics.broadcast_failures += 1
            log.warning("broadcast decoding failed", error=describe(error))
            return
        if event_type is None or frame.event_version > event_type.version:
            return  # newer code published it, and no listener of this code knows it
        for listener in self._listeners.local(event_type.cls).broadcast:
            await self._run_alone(listener, _decode_and_call(listener, event_type, frame), "handler")

    async def _run_alone(self, listener: Listener, work: Coroutine[Any, Any, None], callback: str) -> None:
        """Run a listener's code in a task of its own, within its timeout; its errors are logged.

        Raises:
            asyncio.CancelledError: the calling task was cancelled; the listener's task was cancelled too.
        """
        task = asyncio.create_task(self._contain(listener, work, callback), name=f"broadcast to {listener.name}")
        ended = asyncio.Event()
        task.add_done_callback(lambda _: ended.set())
        try:
            if await self._clock.wait(ended, listener.options.timeout or math.inf):
                return
            self._metrics.broadcast_failures += 1
            log.error(
                "broadcast listener cancelled",
                listener=listener.name,
                callback=callback,
                seconds=listener.options.timeout,
            )
            await self._cancel(listener, task, ended)
        except asyncio.CancelledError:
            await self._cancel(listener, task, ended)
            raise

    async def _cancel(self, listener: Listener, task: asyncio.Task[None], ended: asyncio.Event) -> None:
        """Cancel a listener's task, and leave it behind if it does not end."""
        self._cancelled.add(task)
        task.add_done_callback(self._cancelled.discard)
        task.cancel()
        if not await StopSequence(self._clock).wait(ended, CANCEL_TIMEOUT):
            log.error("broadcast listener left behind", listener=listener.name)

    async def _contain(self, listener: Listener, work: Coroutine[Any, Any, None], callback: str) -> None:
        task = asyncio.current_task()
        try:
            await work
        except BaseException as error:
            if task in self._cancelled and type(error) is asyncio.CancelledError:
                raise
            if issubclass(type(error), GeneratorExit) and ends_task(task, error):
                raise
            self._metrics.broadcast_failures += 1
            with contextlib.suppress(Exception):  # a value that the listener bound to the log may fail to render
                log.error(  # noqa: TRY400 - the traceback is rendered safely here
                    "broadcast listener failed",
                    listener=listener.name,
                    callback=callback,
                    error=describe(error),
                    exception=render_traceback(error),
                )
            if (leaving := exit_in(error)) is not None:
                self._supervisor.end(leaving)


async def _call_here(listener: Listener, outgoing: Outgoing) -> None:
    await _call_listener(listener, outgoing.event, outgoing.delivery(listener.name))


async def _call_listener(listener: Listener, event: object, delivery: Delivery) -> None:
    enter_cause(delivery)
    await finish_call(listener.call(event, delivery))


async def _decode_and_call(listener: Listener, event_type: EventType, frame: Frame) -> None:
    event = event_type.decode(frame.payload, frame.event_version)
    await _call_listener(listener, event, delivery_of(frame, listener.name))


async def _call_on_gap(on_gap: OnGap) -> None:
    await finish_call(on_gap())
