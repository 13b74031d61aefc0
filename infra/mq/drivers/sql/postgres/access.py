"""Operations on the queue's connections: reads, changes that notify, steps, and changes of the registry."""

import asyncio
import time
from typing import TypeVar

from infra.backoff import Backoff
from infra.db.postgresql import PostgreSQL
from infra.mq.drivers.sql.postgres import registry
from infra.mq.drivers.sql.postgres.connections import Operation, QueueConnections
from infra.mq.drivers.sql.postgres.errors import KeyBusy
from infra.mq.drivers.sql.postgres.notifier import Notifier

T = TypeVar("T")

REGISTRY_PAUSE = 0.1
"""Seconds between two attempts to change the registry while publishes are in flight."""


class ServerAccess:
    """The ways to run an operation outside of the application's transactions.

    Args:
        db: The database, whose address errors name.
        connections: The queue's connections to the server.
        notifier: Notified of each change.
        patience: Seconds that a change of the registry waits for publishes in flight.
    """

    def __init__(self, db: PostgreSQL, connections: QueueConnections, notifier: Notifier, patience: float) -> None:
        self._db = db
        self._connections = connections
        self._notifier = notifier
        self._patience = patience

    async def read(self, operation: Operation[T], *, several: bool = False) -> T:
        """Run a read; `several` statements read one snapshot."""
        if several:
            return await self._connections.transaction(operation, "read")
        return await self._connections.run(operation, writing=False)

    async def attempt(self, operation: Operation[T]) -> T:
        """Run a change of one statement that the caller may repeat: a lost answer raises `QueueUnavailable`."""
        return await self._connections.run(operation, writing=False)

    async def change(self, operation: Operation[T]) -> T:
        """Run a change of several statements in a transaction, and notify."""
        result = await self._connections.transaction(operation)
        self._notifier.notify()
        return result

    async def in_steps(self, step: Operation[tuple[int, bool]]) -> int:
        """Run a step in transaction after transaction until it reports the end; return the sum of its counts."""
        total, more = 0, True
        while more:
            count, more = await self.change(step)
            total += count
        return total

    async def change_registry(self, operation: Operation[T]) -> T:
        """Run a change that locks the registry.

        Raises:
            KeyBusy: the lock was not free in time.
        """
        # Waiting for the registry's lock makes all publishers wait too, so each attempt is short.
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return await self.change(operation)
            except KeyBusy:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(REGISTRY_PAUSE)

    async def wait_for_publishers(self) -> None:
        """Wait until all transactions have ended that may have used an earlier version of the registry.

        Raises:
            KeyBusy: such a transaction has not ended in time.
        """
        deadline = time.monotonic() + self._patience
        in_flight = await self.read(registry.publishers)
        backoff = Backoff(REGISTRY_PAUSE / 32, REGISTRY_PAUSE)
        while in_flight:
            if time.monotonic() >= deadline:
                where = self._db.address.where
                raise KeyBusy(f"PostgreSQL at {where}: another transaction held a needed lock for too long; try again")
            await asyncio.sleep(backoff.failed())
            in_flight &= await self.read(registry.publishers)
