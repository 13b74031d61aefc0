"""Sends rows of the outbox to the queue, and finds those that it refuses."""

import uuid
from collections.abc import Sequence

import structlog

from bus.metrics import BusMetrics
from bus.publishing.outbox import GROUP, Outbox
from bus.publishing.outbox_entries import Entry
from bus.supervisor import TRANSIENT
from infra.failures import describe
from infra.mq import MessageQueue, QueueRejected, QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FINAL = (QueueRejected, ValueError, OverflowError)
"""What says that a message itself can never be sent: the queue's refusal, or a value that fits no request."""

PASSING = (*TRANSIENT, MemoryError)
"""What says nothing about a message: it passes."""

MAX_STRIKES = 5
"""Attempts of a message alone that end in an error of neither kind, after which it is set aside."""


class OutboxSender:
    """Publishes and cancels rows, deletes those that the queue has, and sets those aside that it refuses for good.

    A group that fails for a reason in its messages is halved until the message is found; the others go on. A group
    that fails for any other reason fails as a whole, and the next one is half as large: what does not get through in
    one piece may do so in several. Then the groups grow again, by a quarter each.
    """

    def __init__(self, mq: MessageQueue, outbox: Outbox, metrics: BusMetrics, sent: set[int | str]) -> None:
        self.group = GROUP
        """How many rows to send at a time."""

        self._id = uuid.uuid4().hex
        self._mq = mq
        self._outbox = outbox
        self._metrics = metrics
        self._strikes: dict[int | str, int] = {}
        self._sent = sent
        """Rows that the queue has, and that are not deleted yet; shared by all senders of a process."""

    async def publish(self, entries: Sequence[Entry]) -> None:
        """Publish messages in order.

        Raises:
            Exception: what kept them from being sent, if it may pass; all that were not sent still have their rows.
        """
        if (entries := await self._unsent(entries)) and (entries := await self._outbox.claim(self._id, entries)):
            await self._publish(entries)

    async def cancel(self, entries: Sequence[Entry]) -> None:
        """Carry out cancellations.

        Raises:
            Exception: as `publish`.
        """
        for each in await self._unsent(entries):
            try:
                await self._mq.cancel(each.message_id)
            except Exception as error:
                if not self._is_about_messages(error):
                    raise
                await self._refused(each, error)
            else:
                await self._remove([each])

    async def _publish(self, entries: Sequence[Entry]) -> None:
        messages = [each.message for each in entries if each.message is not None]
        try:
            await self._mq.publish(messages)
        except Exception as error:
            if not self._is_about_messages(error):
                self._shrink(len(entries))
                if isinstance(error, QueueUnavailable):
                    await self._outbox.unclaim(self._id, entries)
                raise
            if len(entries) > 1:
                half = len(entries) // 2
                await self._publish(entries[:half])
                await self._publish(entries[half:])
                return
            await self._refused(entries[0], error)
            return
        self.group = min(self.group + max(1, self.group // 4), GROUP)
        await self._remove(entries)

    def _is_about_messages(self, error: Exception) -> bool:
        return isinstance(error, FINAL) or not isinstance(error, PASSING)

    async def _refused(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, FINAL):
            strikes = self._strikes[entry.key] = self._strikes.get(entry.key, 0) + 1
            if strikes < MAX_STRIKES:
                raise error
        self._strikes.pop(entry.key, None)
        reason = describe(error)
        await self._outbox.set_aside(entry, reason)
        self._metrics.outbox_rejected += 1
        log.error(
            "outbox message rejected",
            kind=entry.kind.value,
            event_name=entry.message.event if entry.message is not None else None,
            event_id=entry.message_id,
            error=reason,
        )

    async def _remove(self, entries: Sequence[Entry]) -> None:
        keys = {each.key for each in entries}
        self._sent |= keys
        await self._outbox.remove(entries)
        self._sent -= keys
        if self._strikes:
            for key in keys:
                self._strikes.pop(key, None)

    async def _unsent(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the rows that were not sent; those that were are still there if the database could not delete them."""
        if not self._sent:
            return entries
        if sent := [each for each in entries if each.key in self._sent]:
            await self._remove(sent)
            keys = {each.key for each in sent}
            entries = [each for each in entries if each.key not in keys]
        return entries

    def _shrink(self, sent: int) -> None:
        self.group = max(1, min(sent, self.group) // 2)
