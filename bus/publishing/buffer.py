"""The buffers of publishes: for one transaction until it commits, or for one sync phase until it ends."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from bus.outgoing import Outgoing
from bus.publishing.outbox_entries import Entry
from infra.db import Transaction


class Committer(Protocol):
    """Takes what a transaction published, before and after COMMIT."""

    async def before_commit(
        self, transaction: Transaction, batch: Sequence[Outgoing], cancelled: Sequence[str]
    ) -> Sequence[Entry]:
        """Store the events and cancellations in the transaction, and return the outbox entries written."""
        ...

    async def after_commit(self, batch: Sequence[Outgoing], entries: Sequence[Entry], cancelled: Sequence[str]) -> None:
        """Send what the commit does not store."""
        ...


class PublishBuffer:
    """The publishes and cancellations of one transaction."""

    def __init__(self, committer: Committer, transaction: Transaction) -> None:
        self._committer = committer
        self._transaction = transaction
        self._waiting: list[Outgoing] = []
        self._cancelled: list[str] = []
        self._flushed: list[Outgoing] = []
        self._flushed_cancels: list[str] = []
        self._entries: list[Entry] = []

    def add(self, outgoing: Outgoing) -> None:
        """Add a publish, in order."""
        self._waiting.append(outgoing)

    def withdraw(self, message_id: str) -> list[Outgoing]:
        """Remove and return the delayed publishes of that id that are still in the buffer."""
        withdrawn = [each for each in self._waiting if each.due_at is not None and each.id == message_id]
        if withdrawn:
            self._waiting = [each for each in self._waiting if each.due_at is None or each.id != message_id]
        return withdrawn

    def cancels(self, message_id: str) -> bool:
        """Whether the commit cancels that id."""
        return message_id in self._cancelled

    def cancel_at_commit(self, message_id: str) -> None:
        """Cancel that id if and only if the transaction commits; for queues that cannot take part in it."""
        self._cancelled.append(message_id)

    def savepoint(self) -> tuple[list[Outgoing], list[str]]:
        return self._waiting.copy(), self._cancelled.copy()

    def rollback_to(self, mark: object) -> None:
        assert isinstance(mark, tuple)  # noqa: S101 - the return value of savepoint()
        waiting, cancelled = mark
        self._waiting, self._cancelled = list(waiting), list(cancelled)

    async def before_commit(self) -> None:
        if not self._waiting and not self._cancelled:
            return
        batch, self._waiting = self._waiting, []
        cancelled, self._cancelled = self._cancelled, []
        self._entries += await self._committer.before_commit(self._transaction, batch, cancelled)
        self._flushed += batch
        self._flushed_cancels += cancelled

    async def after_commit(self) -> None:
        await self._committer.after_commit(self._flushed, self._entries, self._flushed_cancels)

    async def after_rollback(self) -> None:
        self._waiting.clear()
        self._flushed.clear()
        self._cancelled.clear()


class SyncPhaseBuffer(msgspec.Struct, eq=False):
    """The publishes of one tree of sync listeners, for a bus without a database and so without transactions."""

    task: object
    """The task that runs the listeners. A task that a listener starts inherits the cause, and publishes by itself."""

    batch: list[Outgoing]
    ended: bool = False

    def add(self, outgoing: Outgoing) -> None:
        """Add a publish, in order."""
        self.batch.append(outgoing)

    def savepoint(self) -> int:
        """Return a mark of the publishes so far."""
        return len(self.batch)

    def rollback_to(self, mark: int) -> None:
        """Remove the publishes since `mark`."""
        del self.batch[mark:]

    @property
    def open(self) -> bool:
        """Whether the sync phase is running, in the current task."""
        return not self.ended and self.task is asyncio.current_task()
