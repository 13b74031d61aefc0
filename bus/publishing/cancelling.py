"""Cancels delayed events, wherever each of them is: in a transaction, in the outbox, or in the queue."""

from collections.abc import Awaitable, Callable

from bus.errors import CancelFailed
from bus.publishing.buffer import PublishBuffer
from bus.publishing.outbox import Outbox
from bus.publishing.outbox_entries import Standing
from bus.store_errors import STORE_ERRORS, reason_of
from infra.clock import Clock
from infra.db import CommitIndeterminate, Database, Transaction
from infra.mq import MessageQueue, QueueIndeterminate, QueueUnavailable

SENT_WITHIN = 5.0
"""Seconds that a cancellation waits for a message that is just being sent to the queue."""

POLL_EVERY = 0.1
"""Seconds between two polls for that."""


class Canceller:
    """Cancels delayed events; `time` is the queue's time, `buffer` what a transaction has published so far."""

    def __init__(
        self,
        mq: MessageQueue,
        db: Database | None,
        outbox: Outbox | None,
        clock: Clock,
        time: Callable[[], Awaitable[float]],
        buffer: Callable[[Transaction], PublishBuffer],
    ) -> None:
        self._mq = mq
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._time = time
        self._buffer = buffer

    async def cancel(self, message_id: str) -> bool:
        """Cancel a delayed publish; inside a transaction, if and only if it commits.

        Raises:
            CancelFailed: the queue did not say that it is cancelled.
        """
        transaction = self._db.current() if self._db is not None else None
        try:
            if transaction is not None:
                return await self._cancel_inside(transaction, message_id)
            if self._outbox is not None and self._db is not None:
                return await self._cancel_on_its_way(self._outbox, self._db, message_id)
            return await self._mq.cancel(message_id)
        except (QueueIndeterminate, CommitIndeterminate) as error:
            raise CancelFailed(f"event {message_id} may or may not have been cancelled: {error}") from error
        except STORE_ERRORS as error:
            raise CancelFailed(f"event {message_id} was not cancelled: {reason_of(error)}") from error

    async def _cancel_on_its_way(self, outbox: Outbox, db: Database, message_id: str) -> bool:
        """Cancel what is in the outbox, while no process has begun to send it, or else in the queue.

        Raises:
            CancelFailed: it is just being sent, and that takes longer than `SENT_WITHIN`.
        """
        patience = self._clock.monotonic() + SENT_WITHIN
        while True:
            match await outbox.standing(message_id, await self._time()):
                case None | Standing.DUE:
                    return await self._mq.cancel(message_id)
                case Standing.CANCELLED:
                    return False
                case Standing.REJECTED:
                    async with db.transaction() as transaction:
                        return await self._cancel_inside(transaction, message_id)
                case Standing.SCHEDULED:
                    async with db.transaction() as transaction:
                        if await outbox.take_back(transaction, message_id):
                            # The queue may have an earlier one of that id.
                            self._buffer(transaction).cancel_at_commit(message_id)
                            return True
            if self._clock.monotonic() >= patience:
                raise CancelFailed(
                    f"event {message_id} was not cancelled: it is just being sent to the queue; try again"
                )
            await self._clock.sleep(POLL_EVERY)

    async def _cancel_inside(self, transaction: Transaction, message_id: str) -> bool:
        buffer = self._buffer(transaction)
        withdrawn = buffer.withdraw(message_id)
        if withdrawn and all(each.explicit_id is None for each in withdrawn):
            return True  # the id was made for it, so that nothing else can have it
        if self._mq.features.transactional:
            return await self._mq.cancel(message_id) or bool(withdrawn)
        if buffer.cancels(message_id) or not await self._is_cancellable(transaction, message_id):
            return bool(withdrawn)
        buffer.cancel_at_commit(message_id)
        return True

    async def _is_cancellable(self, transaction: Transaction, message_id: str) -> bool:
        if self._outbox is None:
            return await self._mq.scheduled(message_id)
        match standing := await self._outbox.standing(message_id, await self._time()):
            case Standing.SCHEDULED:
                return True
            case Standing.CANCELLED:
                return False
            case Standing.REJECTED:
                await self._outbox.withdraw(transaction, message_id)
                return True
        try:
            return await self._mq.scheduled(message_id)
        except QueueUnavailable:
            # An unavailable queue sends nothing: the commit does not wait for it, and the relay cancels there later.
            return standing is None
