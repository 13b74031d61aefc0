"""The `QueueDialect` of PostgreSQL: it assigns each operation to a connection."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import structlog

from infra.clock import Clock
from infra.db import Database, Transaction
from infra.db.cancellation import finish
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.dialect import Membership, SqlOptions
from infra.mq.drivers.sql.postgres import (
    administration,
    broadcasting,
    horizon,
    inspection,
    membership,
    publishing,
    registry,
    retiring,
    settling,
)
from infra.mq.drivers.sql.postgres.ambient import AfterCommit, run_in
from infra.mq.drivers.sql.postgres.clock import ServerClock
from infra.mq.drivers.sql.postgres.connections import Operation, QueueConnections
from infra.mq.drivers.sql.postgres.errors import KeyBusy, queue_error
from infra.mq.drivers.sql.postgres.forgetting import Forgetter
from infra.mq.drivers.sql.postgres.group_publisher import GroupPublisher
from infra.mq.drivers.sql.postgres.lease import LeaseKeeper, LeaseMembership
from infra.mq.drivers.sql.postgres.notifier import Notifier
from infra.mq.drivers.sql.postgres.workers import Workers
from infra.mq.errors import QueueError, QueueUnavailable
from infra.mq.refusals import in_use
from infra.mq.types import (
    BacklogPolicy,
    Claim,
    ClaimLimits,
    DeadLetter,
    Message,
    Outcome,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

CLOSE_PATIENCE = 5.0
"""Seconds that `close` waits for publishes in flight."""

REGISTRY_PAUSE = 0.1
"""Seconds between two attempts to change the registry while publishes are in flight."""


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
        self._forgetter = Forgetter(self._connections, options.dedupe_window, options.broadcast_kept)
        self._workers = Workers(self._connections, self._keeper, self.clock, self._notifier.wake)

    @property
    def interruptions(self) -> int:
        return self._notifier.interruptions

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections.open()
        try:
            await self._read(registry.version)
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
            await finish(self._workers.close()),
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
        return await self._read(operation)

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        operation = partial(broadcasting.broadcast, frames=frames, origin=origin, now=now)
        if not await self._join_or_write(operation) and (transaction := self._db.current()) is not None:
            self._announce(transaction).finish_with(partial(self._broadcast_after_commit, operation, len(frames)))

    async def last_broadcast(self) -> int:
        return await self._read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        return await self._read(partial(broadcasting.broadcasts_after, after=number, origin=origin))

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        ask = partial(registry.declared, subscriptions=subscriptions, broadcasts=broadcasts)
        found = await self._read(ask)
        if not found.complete:
            add = partial(registry.declare, subscriptions=subscriptions, broadcasts=broadcasts, now=self.clock.time())
            await self._change_registry(add)
            found = await self._read(ask)
        if found.visible_at is None:
            await self._wait_for_publishers()
            # No open publish uses an earlier version, so from this time on all publishers use this one.
            visible_at = self.clock.time()
            with suppress(QueueError):
                await self._write(partial(registry.mark_visible, version=found.version, now=visible_at))
            return visible_at
        return found.visible_at

    async def registry(self) -> Registry:
        return await self._read(registry.registry)

    async def join(self, info: WorkerInfo, now: float) -> LeaseMembership:
        return await self._workers.join(info, now)

    async def leave(self, member: Membership, keep: Collection[Claim], now: float) -> None:
        try:
            await self._workers.leave(_own(member), keep, now)
        except TimeoutError as error:
            raise QueueUnavailable(f"PostgreSQL at {self._server.address.where} does not answer") from error
        self._notifier.notify()

    async def next_due(self, names: Collection[str]) -> float | None:
        return await self._workers.next_due(names)

    async def claim(self, member: Membership, wants: Mapping[str, int], limits: ClaimLimits, now: float) -> list[Claim]:
        return await self._workers.claim(_own(member), wants, limits, now)

    async def settle(self, member: Membership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        try:
            return await self._workers.settle(_own(member), settlements, now)
        finally:
            if any(it.claim.ordered or it.outcome is not Outcome.DONE for it in settlements):
                self._notifier.notify()

    async def isolate(self, member: Membership, claim: Claim) -> bool:
        return await self._write(partial(settling.isolate, worker=_own(member).number, claim=claim))

    async def recover(self, now: float) -> int:
        count = await self._workers.recover(now)
        if count:
            self._notifier.notify()
        await self._forgetter.forget(now)
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        if not await self._read(partial(membership.has_parked, known=known)):
            return 0
        return await self._in_steps(partial(membership.unpark, known=known, now=now))

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in await self._read(partial(membership.live, lease=self._options.lease))]
        return await self._read(partial(inspection.stats, live=live, now=now), several=True)

    async def warnings(self) -> list[str]:
        found = await self._read(horizon.warnings, several=True)
        return found + await self._read(inspection.interrupted_retirements)

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        operation = partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        return await self._read(operation, several=True)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        await self._promote(now)
        return sum(
            [
                await self._change(partial(administration.retry_dead, numbers=step, now=now))
                for step in await self._read(partial(administration.steps_of, dead_ids=dead_ids), several=True)
            ]
        )

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return sum(
            [
                await self._change(partial(administration.discard_dead, numbers=step))
                for step in await self._read(partial(administration.steps_of, dead_ids=dead_ids), several=True)
            ]
        )

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._change(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        await self._change(partial(administration.unblock, name=name, key=ordering_key, now=now, skip=skip))

    async def retire(self, name: str, event: str | None, backlog: BacklogPolicy, now: float) -> int:
        if event is None:
            names = await self._read(partial(registry.names_of, name=name), several=True)
            if (user := await self._workers.user_of(names)) is not None:
                raise in_use(name, user)
        found = await self._count_backlog(name, event) if backlog == "refuse" else None
        begin = partial(
            retiring.begin, name=name, event=event, backlog=backlog, found=found, now=now, lease=self._options.lease
        )
        retirement = await self._change_registry(begin)
        count = await self._in_steps(partial(retiring.step, retirement=retirement, now=now))
        await self._in_steps(partial(retiring.drop_mailboxes, retirement=retirement))
        await self._change_registry(partial(retiring.end, retirement=retirement, now=now))
        return count

    # --- helpers ------------------------------------------------------------------------------------------------------

    async def _send(self, messages: Sequence[Message], patience: float) -> None:  # see `Send`
        now, window = self.clock.time(), self._options.dedupe_window
        parts = [
            partial(publishing.publish, messages=part, now=now, dedupe_window=window, patience=patience)
            for part in publishing.parts_of(messages)
        ]
        if len(parts) == 1:
            await self._write(parts[0])
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
                routes = await self._read(partial(publishing.routes_of, messages=part))
                answer = await run_in(transaction, partial(operation, routes=routes), self._server)
            if answer == publishing.PROMOTE:
                ids = list({it.id for it in part})
                announcement.finish_with(partial(self._promote_these, ids))

    async def _count_backlog(self, name: str, event: str | None) -> retiring.Found:
        # It may read all deliveries, so it must not make publishers wait.
        since = await self._read(retiring.last_number)
        await self._wait_for_publishers()  # then all deliveries with a number up to `since` are committed
        count = await self._read(partial(retiring.count_backlog, name=name, event=event), several=True)
        return retiring.Found(count, since)

    def _terminate_stuck(self) -> None:
        # A cut network sends no error: operations would wait for the whole statement timeout.
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: no operation waits
                self._loop.call_soon_threadsafe(self._connections.terminate, self._options.lease)

    async def _promote(self, now: float) -> None:
        """Promote all due messages but those locked by other transactions."""
        after: publishing.Position | None = publishing.START
        while after is not None:
            operation = partial(publishing.promote, now=now, after=after)
            _, after = await self._connections.run(operation, writing=False)

    async def _promote_these(self, message_ids: Sequence[str]) -> None:
        for nth in range(0, len(message_ids), publishing.STEP):
            some = message_ids[nth : nth + publishing.STEP]
            operation = partial(publishing.promote, now=self.clock.time(), message_ids=some)
            try:
                await self._connections.run(operation, writing=False)
            except QueueError:
                # The next claim promotes them.
                return
        self._notifier.notify()

    async def _broadcast_after_commit(self, operation: Operation[bool], count: int) -> None:
        """Send the broadcasts of a committed transaction that was stricter than READ COMMITTED."""
        try:
            await self._write(operation)
        except QueueError as error:
            _log.warning("broadcasts dropped", count=count, reason=str(error))

    async def _join_or_write(self, operation: Operation[T]) -> T:
        transaction = self._db.current()
        if transaction is None:
            result = await self._write(operation)
            self._notifier.notify()
            return result
        result = await run_in(transaction, operation, self._server)
        self._announce(transaction)
        return result

    def _announce(self, transaction: Transaction) -> AfterCommit:
        return transaction.participant(self, lambda: AfterCommit(self._notifier.notify))

    async def _write(self, operation: Operation[T]) -> T:
        return await self._connections.run(operation)

    async def _change(self, operation: Operation[T]) -> T:
        result = await self._connections.transaction(operation)
        self._notifier.notify()
        return result

    async def _in_steps(self, step: Operation[tuple[int, bool]]) -> int:
        """Run a step in transaction after transaction until it reports the end; return the sum of its counts."""
        total, more = 0, True
        while more:
            count, more = await self._change(step)
            total += count
        return total

    async def _change_registry(self, operation: Operation[T]) -> T:
        # Waiting for the registry's lock makes all publishers wait too, so each attempt is short.
        deadline = time.monotonic() + self._options.patience
        while True:
            try:
                return await self._change(operation)
            except KeyBusy:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(REGISTRY_PAUSE)

    async def _wait_for_publishers(self) -> None:
        """Wait until all transactions have ended that may have used an earlier version of the registry.

        Raises:
            KeyBusy: such a transaction has not ended in time.
        """
        deadline = time.monotonic() + self._options.patience
        under_way = await self._read(registry.publishers)
        pause = REGISTRY_PAUSE / 32
        while under_way:
            if time.monotonic() >= deadline:
                where = self._server.address.where
                raise KeyBusy(f"PostgreSQL at {where}: another transaction held a needed lock for too long; try again")
            await asyncio.sleep(pause)
            pause = min(pause * 2, REGISTRY_PAUSE)
            under_way &= await self._read(registry.publishers)

    async def _read(self, operation: Operation[T], *, several: bool = False) -> T:
        if several:
            return await self._connections.transaction(operation, "read")
        return await self._connections.run(operation, writing=False)


def _own(member: Membership) -> LeaseMembership:
    return cast("LeaseMembership", member)
