"""The `QueueDialect` of PostgreSQL: its lifecycle, publishing, broadcasts and the registry."""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import structlog

from infra.clock import Clock
from infra.db import Database, Transaction
from infra.db.cancellation import finish
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.dialect import SqlOptions
from infra.mq.drivers.sql.postgres import broadcasting, publishing, registry
from infra.mq.drivers.sql.postgres.access import ServerAccess
from infra.mq.drivers.sql.postgres.ambient import AfterCommit, run_in
from infra.mq.drivers.sql.postgres.clock import ServerClock
from infra.mq.drivers.sql.postgres.commands import PostgresCommands
from infra.mq.drivers.sql.postgres.connections import Operation, QueueConnections
from infra.mq.drivers.sql.postgres.errors import queue_error
from infra.mq.drivers.sql.postgres.forgetting import Forgetter
from infra.mq.drivers.sql.postgres.group_publisher import GroupPublisher
from infra.mq.drivers.sql.postgres.lease import LeaseKeeper
from infra.mq.drivers.sql.postgres.notifier import Notifier
from infra.mq.drivers.sql.postgres.workers import PostgresWorkers
from infra.mq.errors import QueueError
from infra.mq.types import Message, Registry, Subscription

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

CLOSE_PATIENCE = 5.0
"""Seconds that `close` waits for publishes in flight."""


class PostgresQueueDialect:
    """The `QueueDialect` of one PostgreSQL database."""

    def __init__(self, db: Database, clock: Clock, options: SqlOptions) -> None:
        self._db = db
        self._server = cast("PostgreSQL", db.dialect)
        self._options = options
        self.clock = ServerClock(clock)
        self._connections = QueueConnections(self._server, options.patience)
        self._notifier = Notifier(self._server, self._connections, self.clock, options.longest_silence)
        self._keeper = LeaseKeeper(self._server, options.lease, self._terminate_stuck)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher = GroupPublisher(self._send, options.patience)
        forgetter = Forgetter(self._connections, options.dedupe_window, options.broadcast_kept)
        self._access = ServerAccess(self._server, self._connections, self._notifier, options.patience)
        self.workers = PostgresWorkers(
            self._server, self._connections, self._access, self._keeper, self.clock, self._notifier, forgetter
        )
        self.commands = PostgresCommands(self._access, self.workers, options.lease)

    @property
    def interruptions(self) -> int:
        return self._notifier.interruptions

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections.open()
        try:
            await self._access.read(registry.version)
            await self._notifier.open()
        except BaseException as error:
            await self._connections.close()
            if isinstance(error, Exception):
                raise queue_error(error, self._server, writing=False) from error
            raise

    async def close(self) -> None:
        # Every step runs to its end even if all tasks of the loop are cancelled, so that no thread or connection leaks.
        steps = (
            await finish(self._publisher.close(CLOSE_PATIENCE), patience=0),
            await finish(self.workers.close()),
            await finish(self._notifier.close()),
            await finish(asyncio.to_thread(self._keeper.stop)),
            await finish(self._connections.close()),
        )
        for step in steps:
            if step.cancelled is not None:
                raise step.cancelled
        for step in steps:
            if (failure := step.failure) is not None:
                raise failure

    def watch(self, event: asyncio.Event) -> None:
        self._notifier.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._notifier.remove(event)

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        transaction = self._db.current()
        if transaction is None:
            await self._publisher.publish(messages)
            self._notifier.notify()
            return
        await self._publish_in(transaction, messages, now)

    async def cancel(self, message_id: str, now: float) -> bool:
        return await self._join_or_write(partial(publishing.cancel, message_id=message_id, now=now))

    async def scheduled(self, message_id: str, now: float) -> bool:
        operation = partial(publishing.scheduled, message_id=message_id, now=now)
        if (transaction := self._db.current()) is not None:
            return await run_in(transaction, operation, self._server)
        return await self._access.read(operation)

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        operation = partial(broadcasting.broadcast, frames=frames, origin=origin, now=now)
        if not await self._join_or_write(operation) and (transaction := self._db.current()) is not None:
            self._announce(transaction).finish_with(partial(self._broadcast_after_commit, operation, len(frames)))

    async def last_broadcast(self) -> int:
        return await self._access.read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        return await self._access.read(partial(broadcasting.broadcasts_after, after=number, origin=origin))

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        ask = partial(registry.declared, subscriptions=subscriptions, broadcasts=broadcasts)
        found = await self._access.read(ask)
        if not found.complete:
            add = partial(registry.declare, subscriptions=subscriptions, broadcasts=broadcasts, now=self.clock.time())
            await self._access.change_registry(add)
            found = await self._access.read(ask)
        if found.visible_at is None:
            await self._access.wait_for_publishers()
            # No open publish uses an earlier version, so from this time on all publishers use this one.
            visible_at = self.clock.time()
            with suppress(QueueError):
                await self._connections.run(partial(registry.mark_visible, version=found.version, now=visible_at))
            return visible_at
        return found.visible_at

    async def registry(self) -> Registry:
        return await self._access.read(registry.registry)

    async def _send(self, messages: Sequence[Message], patience: float) -> None:  # see `Send`
        now, window = self.clock.time(), self._options.dedupe_window
        parts = [
            partial(publishing.publish, messages=part, now=now, dedupe_window=window, patience=patience)
            for part in publishing.parts_of(messages)
        ]
        if len(parts) == 1:
            await self._connections.run(parts[0])
            return

        async def whole(driver: Driver) -> None:
            for part in parts:
                await part(driver)

        await self._connections.transaction(whole)

    async def _publish_in(self, transaction: Transaction, messages: Sequence[Message], now: float) -> None:
        announcement = self._announce(transaction)
        for part in publishing.parts_of(messages):
            operation = partial(publishing.publish, messages=part, now=now, dedupe_window=self._options.dedupe_window)
            answer = await run_in(transaction, operation, self._server)
            if answer == publishing.ROUTES_WANTED:
                routes = await self._access.read(partial(publishing.routes_of, messages=part))
                answer = await run_in(transaction, partial(operation, routes=routes), self._server)
            if answer == publishing.PROMOTE:
                ids = list({it.id for it in part})
                announcement.finish_with(partial(self._promote_these, ids))

    def _terminate_stuck(self) -> None:
        # A cut network sends no error: operations would wait for the whole statement timeout.
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: no operation waits
                self._loop.call_soon_threadsafe(self._connections.terminate, self._options.lease)

    async def _promote_these(self, message_ids: Sequence[str]) -> None:
        for nth in range(0, len(message_ids), publishing.STEP):
            some = message_ids[nth : nth + publishing.STEP]
            operation = partial(publishing.promote, now=self.clock.time(), message_ids=some)
            try:
                await self._access.attempt(operation)
            except QueueError:
                # The next claim promotes them.
                return
        self._notifier.notify()

    async def _broadcast_after_commit(self, operation: Operation[bool], count: int) -> None:
        """Send the broadcasts of a committed transaction that was stricter than READ COMMITTED."""
        try:
            await self._connections.run(operation)
        except QueueError as error:
            _log.warning("broadcasts dropped", count=count, reason=str(error))

    async def _join_or_write(self, operation: Operation[T]) -> T:
        transaction = self._db.current()
        if transaction is None:
            result = await self._connections.run(operation)
            self._notifier.notify()
            return result
        result = await run_in(transaction, operation, self._server)
        self._announce(transaction)
        return result

    def _announce(self, transaction: Transaction) -> AfterCommit:
        return transaction.participant(self, lambda: AfterCommit(self._notifier.notify))
