"""The relay: carries what transactions left in the outbox to the queue."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence

import structlog

from bus.metrics import BusMetrics
from bus.outbox import BATCH, Entry, Kind, Outbox
from infra.clock import Clock
from infra.db import DatabaseError
from infra.mq import Message, MessageQueue, QueueError, QueueRejected

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOOK_EVERY = 0.5
"""Seconds between two looks for what other processes left."""

LEFT_AFTER = 2.0
"""Seconds after which an unordered row counts as left by its publisher."""

LEASE = 3.0
"""Seconds for which one process may send ordered rows before another takes over."""

MAX_WAITING = 10_000
"""Messages that wait in memory for their direct push; beyond that the rows alone wait."""

MAX_BACKOFF = 2.0
"""The longest wait, in seconds, between two attempts while the queue is away."""


class Relay:
    """Sends this process's unordered messages at once, and everybody's ordered ones in order, one process at a time.

    All is sent with `dedupe`: what is sent twice, because a reply or a process was lost in between, is accepted once.
    That also makes a holder of the lease harmless that was paused for longer than it: it can only repeat.
    """

    def __init__(self, mq: MessageQueue, outbox: Outbox, clock: Clock, metrics: BusMetrics) -> None:
        self._mq = mq
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._owner = uuid.uuid4().hex
        self._direct: list[Message] = []
        self._broadcasts: list[tuple[bytes, str]] = []
        self._kicked = asyncio.Event()
        self._ordered = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to carry; the queue knows this process's subscriptions by now."""
        self._task = asyncio.create_task(self._run(), name="bus relay")

    async def close(self) -> None:
        """Stop; what is left is found by the next relay."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def committed(self, messages: Sequence[Message], *, cancelled: bool) -> None:
        """Take note of what a transaction of this process has just left in the outbox."""
        for message in messages:
            if message.ordering_key is not None:
                self._ordered = True
            elif len(self._direct) < MAX_WAITING:
                self._direct.append(message)
        self._ordered = self._ordered or cancelled
        self._kicked.set()

    def broadcast(self, frames: Sequence[bytes], origin: str) -> None:
        """Send broadcasts, at most once: they are gone if the queue is."""
        self._broadcasts += [(frame, origin) for frame in frames]
        self._kicked.set()

    async def _run(self) -> None:
        backoff = 0.05
        looked = float("-inf")
        while True:
            await self._clock.wait(self._kicked, LOOK_EVERY)
            self._kicked.clear()
            try:
                await self._send_broadcasts()
                await self._send_direct()
                if self._ordered or self._clock.monotonic() - looked >= LOOK_EVERY:
                    looked = self._clock.monotonic()
                    await self._carry()
                backoff = 0.05
            except (QueueError, DatabaseError) as error:
                self._direct.clear()  # the rows are in the outbox, and old enough by the time that all is well
                self._metrics.publish_failures += 1
                log.warning("the outbox waits for the queue", error=str(error), retry_in=round(backoff, 2))
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF)
                self._kicked.set()

    async def _send_broadcasts(self) -> None:
        batch, self._broadcasts = self._broadcasts, []
        for frame, origin in batch:
            await self._mq.broadcast([frame], origin=origin)
            self._metrics.broadcasts_sent += 1

    async def _send_direct(self) -> None:
        while self._direct:
            batch, self._direct = self._direct[:BATCH], self._direct[BATCH:]
            await self._publish(batch)
            await self._outbox.remove_sent([each.id for each in batch])

    async def _carry(self) -> None:
        """Send all that is due in order, if no other process is just doing so."""
        while entries := await self._due():
            if not await self._outbox.acquire(self._owner, LEASE):
                # Its holder may be about to let go, with our rows come too late for it: look again soon.
                self._ordered = True
                await self._clock.sleep(0.02)
                self._kicked.set()
                return
            try:
                # What was due may have been sent by whoever held the right until now.
                while entries := await self._due():
                    await self._send(entries)
                    if not await self._outbox.acquire(self._owner, LEASE):
                        return
            finally:
                await self._outbox.release(self._owner)
        self._ordered = False

    async def _due(self) -> list[Entry]:
        return await self._outbox.due(unordered_before=self._clock.time() - LEFT_AFTER)

    async def _send(self, entries: Sequence[Entry]) -> None:
        messages: list[Message] = []
        for entry in entries:
            if entry.kind is Kind.CANCEL:
                await self._publish(messages)
                messages = []
                await self._mq.cancel(entry.message_id)
            elif entry.message is not None:
                messages.append(entry.message)
        await self._publish(messages)
        await self._outbox.remove([each.id for each in entries])

    async def _publish(self, messages: Sequence[Message]) -> None:
        """Publish all; what the queue refuses for good is reported and set aside, so as not to hold up the rest."""
        if not messages:
            return
        try:
            await self._mq.publish(messages)
        except QueueRejected as error:
            if len(messages) == 1:
                self._metrics.publish_failures += 1
                await self._outbox.set_aside(messages[0].id)
                log.error(  # noqa: TRY400 - the queue's own words say why
                    "the queue refuses a committed event for good: it stays in the outbox as rejected",
                    event_name=messages[0].event,
                    event_id=messages[0].id,
                    error=str(error),
                )
                return
            for each in messages:
                await self._publish([each])
