"""Dispatch without an outbox: to a queue in the publisher's database, or to one without a database beside it."""

from collections.abc import Sequence

import structlog

from bus.outgoing import Outgoing
from bus.publishing.buffer import PublishBuffer
from bus.publishing.dispatch import Dispatch
from bus.publishing.outbox_entries import Entry
from infra.db import Transaction
from infra.mq import QueueError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class TransactionalDispatch(Dispatch):
    """For a queue in the publisher's database: a transaction's events are part of its commit."""

    async def before_commit(
        self,
        transaction: Transaction,
        batch: Sequence[Outgoing],
        cancelled: Sequence[str],
    ) -> Sequence[Entry]:
        """Store the events in the queue's tables."""
        await self.prepare(batch)  # again: the subscription cache may have expired since the publish
        await self.send(batch)
        return ()

    async def after_commit(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """Do nothing: the commit has stored everything."""

    async def cancel_inside(self, transaction: Transaction, buffer: PublishBuffer, message_id: str) -> bool:
        """Delete the event in the queue's tables, in the current transaction."""
        return await self._mq.cancel(message_id)


class DirectDispatch(Dispatch):
    """For the memory queue, whose content ends with the process: a transaction's events are sent after its commit.

    Also for a remote queue without a database, where there are no transactions.
    """

    async def before_commit(
        self,
        transaction: Transaction,
        batch: Sequence[Outgoing],
        cancelled: Sequence[str],
    ) -> Sequence[Entry]:
        """Store nothing."""
        return ()

    async def after_commit(
        self,
        batch: Sequence[Outgoing],
        entries: Sequence[Entry],
        cancelled: Sequence[str],
    ) -> None:
        """Send the cancellations and the events; an error is logged, since the commit cannot be undone."""
        try:
            # First: an id that is cancelled and published again in one transaction is published in the end.
            for message_id in cancelled:
                await self._mq.cancel(message_id)
            if batch:
                await self.send(batch)
        except QueueError as error:
            self._metrics.publish_failures += len(batch)
            log.error(  # noqa: TRY400 - one line without a traceback
                "publish after commit failed", count=len(batch), error=str(error)
            )
