"""The sender of outbox rows: sends them to the queue in groups, and isolates those that the queue refuses."""

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

PERMANENT = (QueueRejected, ValueError, OverflowError)
"""Errors after which a message can never be sent: the queue refused it, or a value does not fit into a request."""

TEMPORARY = (*TRANSIENT, MemoryError)
"""Errors that do not depend on a message, and end by themselves."""

MAX_FAILURES = 5
"""Attempts to send one message alone that fail with an error of neither kind, after which its row is rejected."""


class OutboxSender:
    """Sends rows to the queue, deletes those that arrived, and rejects those that the queue refuses permanently.

    A group that fails because of a message in it is halved until the message is found; the other messages are sent. A
    group that fails for any other reason fails as a whole, and the next group is half as large, in case the size was
    the reason. After a success the groups grow again, by a quarter each.
    """

    def __init__(self, mq: MessageQueue, outbox: Outbox, metrics: BusMetrics, sent: set[int | str]) -> None:
        self.group = GROUP
        """The number of rows to send in one group."""

        self._id = uuid.uuid4().hex
        self._mq = mq
        self._outbox = outbox
        self._metrics = metrics
        self._failures: dict[int | str, int] = {}
        self._sent = sent
        """Keys of rows that the queue has and that are not deleted yet; shared by all senders of a process."""

    async def publish(self, entries: Sequence[Entry]) -> None:
        """Publish messages in order.

        Raises:
            Exception: a temporary failure; all messages that were not sent still have their rows.
        """
        if (entries := await self._unsent(entries)) and (entries := await self._outbox.claim(self._id, entries)):
            await self._publish(entries)

    async def cancel(self, entries: Sequence[Entry]) -> None:
        """Cancel messages in the queue.

        Raises:
            Exception: a temporary failure; all cancellations that were not sent still have their rows.
        """
        for each in await self._unsent(entries):
            try:
                await self._mq.cancel(each.message_id)
            except Exception as error:
                if not self._is_about_messages(error):
                    raise
                await self._reject_or_raise(each, error)
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
            await self._reject_or_raise(entries[0], error)
            return
        self.group = min(self.group + max(1, self.group // 4), GROUP)
        await self._remove(entries)

    def _is_about_messages(self, error: Exception) -> bool:
        return isinstance(error, PERMANENT) or not isinstance(error, TEMPORARY)

    async def _reject_or_raise(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, PERMANENT):
            failures = self._failures[entry.key] = self._failures.get(entry.key, 0) + 1
            if failures < MAX_FAILURES:
                raise error
        self._failures.pop(entry.key, None)
        reason = describe(error)
        await self._outbox.reject(entry, reason)
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
        if self._failures:
            for key in keys:
                self._failures.pop(key, None)

    async def _unsent(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the rows that were not sent; delete those that were sent, and whose deletion failed before."""
        if not self._sent:
            return entries
        if sent := [each for each in entries if each.key in self._sent]:
            await self._remove(sent)
            keys = {each.key for each in sent}
            entries = [each for each in entries if each.key not in keys]
        return entries

    def _shrink(self, sent: int) -> None:
        self.group = max(1, min(sent, self.group) // 2)
