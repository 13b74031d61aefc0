"""The queue on PostgreSQL, put together: who executes what, and on which connection."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar, cast

from infra.clock import Clock
from infra.db import Database, Transaction
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.backend import Membership, Options
from infra.mq.drivers.sql.postgres import (
    administration,
    broadcasting,
    claiming,
    horizon,
    inspection,
    membership,
    publishing,
    registry,
    settling,
)
from infra.mq.drivers.sql.postgres.ambient import Announcement, run_in
from infra.mq.drivers.sql.postgres.bell import Bell
from infra.mq.drivers.sql.postgres.clock import ServerClock
from infra.mq.drivers.sql.postgres.connections import Connections, Operation
from infra.mq.drivers.sql.postgres.errors import KeyBusy, queue_error
from infra.mq.drivers.sql.postgres.lease import LeaseKeeper, Member
from infra.mq.drivers.sql.postgres.positions import Positions
from infra.mq.drivers.sql.postgres.publisher import Publisher
from infra.mq.errors import QueueError, QueueIndeterminate, QueueUnavailable
from infra.mq.types import (
    Claim,
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

STUCK = 0.05
"""Seconds after which scheduled messages are looked at again that are due, but held by somebody's transaction."""

CLOSE_PATIENCE = 5.0
"""Seconds that a queue which is closed waits for publishes that are under way."""

LEAVE_TIMEOUT = 5.0
"""Seconds that a worker which stops tries to give back what it holds; others take over what it could not."""

REGISTRY_PAUSE = 0.1
"""Seconds between two attempts to change the registry while publishes are under way."""


class PostgresBackend:
    """A `Backend` on one PostgreSQL database."""

    def __init__(self, db: Database, clock: Clock, options: Options) -> None:
        self._db = db
        self._server = cast("PostgreSQL", db.backend)
        self._options = options
        self.clock = ServerClock(clock)
        self._connections = Connections(self._server, options.patience)
        self._bell = Bell(self._server, self._connections, self.clock, options.longest_silence)
        self._keeper = LeaseKeeper(self._server, options.lease, self._hang_up)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher = Publisher(self._send, options.patience)
        self._scheduled: float | None = None
        """When the earliest scheduled message was due, at the last look."""

        self._not_before = 0.0
        self._positions = Positions()

    @property
    def interruptions(self) -> int:
        return self._bell.interruptions

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections.open()
        try:
            await self._read(registry.changed_at)
            await self._bell.open()
        except BaseException as error:
            await self._connections.close()
            if isinstance(error, Exception):
                raise queue_error(error, self._server, writing=False) from error
            raise

    async def close(self) -> None:
        await self._publisher.close(CLOSE_PATIENCE)
        await self._bell.close()
        await asyncio.to_thread(self._keeper.stop)
        await self._connections.close()

    def watch(self, event: asyncio.Event) -> None:
        self._bell.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._bell.remove(event)

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        transaction = self._db.current()
        if transaction is None:
            await self._publisher.publish(messages)
            self._bell.ring()
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
        await self._join_or_write(partial(broadcasting.broadcast, frames=frames, origin=origin, now=now))

    async def last_broadcast(self) -> int:
        return await self._read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        return await self._read(partial(broadcasting.broadcasts_after, after=number, origin=origin))

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        if await self._read(
            partial(registry.is_declared, subscriptions=subscriptions, broadcasts=broadcasts), several=True
        ):
            return await self._read(registry.changed_at)
        return await self._change_registry(partial(self._declare, subscriptions=subscriptions, broadcasts=broadcasts))

    async def registry(self) -> Registry:
        return await self._read(registry.registry)

    async def join(self, info: WorkerInfo, now: float) -> Member:
        await asyncio.to_thread(self._keeper.start)
        joined = self.clock.monotonic()
        operation = partial(membership.join, info=info, now=now, lease=self._options.lease)
        return Member(await self._write(operation), self._keeper, self.clock, joined)

    async def leave(self, member: Membership, keep: Collection[Claim], now: float) -> None:
        mine = _own(member)
        if keep:
            self._keeper.linger(mine.number)
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self._change(partial(membership.leave, worker=mine.number, keep=keep, now=now))
        except TimeoutError as error:
            raise QueueUnavailable(f"PostgreSQL at {self._server.address.where} does not answer") from error
        mine.left()

    async def next_due(self, names: Collection[str]) -> float | None:
        await self._look_from_the_start(names)
        starts = self._positions.starts(names)
        due_at, scheduled = await self._read(partial(claiming.next_due, names=names, starts=starts))
        self._scheduled = scheduled
        if scheduled is not None:
            scheduled = max(scheduled, self._not_before)
        look_in = self._positions.look_in
        look_at = None if look_in is None else self.clock.time() + look_in
        return min((it for it in (due_at, scheduled, look_at) if it is not None), default=None)

    async def claim(self, member: Membership, wants: Mapping[str, int], now: float) -> list[Claim]:
        mine = _own(member)
        try:
            if mine.in_doubt:
                await self._release_unknown(mine, now)
            await self._look_from_the_start(wants)
            starts = self._positions.starts(wants)
            claims, latest = await self._connections.run(
                partial(claiming.claim, worker=mine.number, wants=wants, starts=starts, now=now), writing=True
            )
        except QueueIndeterminate as error:
            # What it may have claimed is given back before the next claim; what runs here goes on.
            mine.in_doubt = True
            raise QueueUnavailable(str(error)) from error
        self._positions.claimed(latest)
        for it in claims:
            if it.ordered:
                mine.fences.add(it.fence)
            else:
                mine.deliveries.add(cast("int", it.deliveries[0].id))
        if not claims and self._scheduled is not None and self._scheduled <= now:
            self._not_before = now + STUCK
        return claims

    async def settle(self, member: Membership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        mine = _own(member)
        operation = partial(settling.settle, worker=mine.number, settlements=settlements, now=now)
        fenced = await self._write(operation)
        for it in settlements:
            if not it.claim.ordered:
                mine.deliveries.discard(cast("int", it.delivery.id))
            elif it.close:
                mine.fences.discard(it.claim.fence)
        if any(it.claim.ordered or it.outcome is not Outcome.DONE for it in settlements):
            self._bell.ring()
        return fenced

    async def isolate(self, member: Membership, claim: Claim) -> bool:
        return await self._write(partial(settling.isolate, worker=_own(member).number, claim=claim))

    async def recover(self, now: float) -> int:
        await self._forget(now)
        operation = partial(membership.dead, lease=self._options.lease, steady=self._keeper.steady)
        count = 0
        for number in await self._read(operation):
            count += await self._connections.transaction(partial(membership.take_over, worker=number, now=now))
        if count:
            self._bell.ring()
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        if not await self._read(partial(membership.has_parked, known=known)):
            return 0
        return await self._change(partial(membership.unpark, known=known, now=now))

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in await self._read(membership.live)]
        return await self._read(partial(inspection.stats, live=live, now=now), several=True)

    async def warnings(self) -> list[str]:
        return await self._read(horizon.warnings, several=True)

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        operation = partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        return await self._read(operation, several=True)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        await self._promote(now)
        return await self._change(partial(administration.retry_dead, dead_ids=dead_ids, now=now))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._change(partial(administration.discard_dead, dead_ids=dead_ids))

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._change(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        await self._change(partial(administration.unblock, name=name, key=ordering_key, now=now, skip=skip))

    async def retire(
        self, name: str, event: str | None, backlog: Literal["refuse", "discard", "dead"], now: float
    ) -> int:
        operation = partial(administration.retire, name=name, event=event, backlog=backlog, now=now)
        return await self._change_registry(operation)

    # --- how ----------------------------------------------------------------------------------------------------------

    async def _send(self, messages: Sequence[Message], patience: float) -> None:  # see `Send`
        await self._write(
            partial(
                publishing.publish,
                messages=messages,
                now=self.clock.time(),
                dedupe_window=self._options.dedupe_window,
                patience=patience,
            )
        )

    async def _publish_in(self, transaction: Transaction, messages: Sequence[Message], now: float) -> None:
        window = self._options.dedupe_window
        operation = partial(publishing.publish, messages=messages, now=now, dedupe_window=window)
        answer = await run_in(transaction, operation, self._server)
        if answer == publishing.ROUTES_WANTED:
            routes = await self._read(partial(publishing.routes_of, messages=messages))
            answer = await run_in(transaction, partial(operation, routes=routes), self._server)
        announcement = self._announce(transaction)
        if answer == publishing.PROMOTE:
            ids = list({it.id for it in messages})
            announcement.finish_with(lambda: self._promote(self.clock.time(), ids))

    def _hang_up(self) -> None:
        # A network that is cut says nothing: who waits for an answer would do so for as long as a statement may take.
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._connections.hang_up, self._options.lease)

    async def _declare(
        self, driver: Driver, subscriptions: Collection[Subscription], broadcasts: Collection[str]
    ) -> float:
        if await registry.declare(driver, subscriptions, broadcasts):
            await registry.mark_changed(driver, self.clock.time())
        return await registry.changed_at(driver)

    async def _promote(self, now: float, message_ids: Sequence[str] | None = None) -> None:
        try:
            await self._connections.run(partial(publishing.promote, now=now, message_ids=message_ids), writing=False)
        except QueueError:
            # Whoever fetches next does it.
            return
        self._bell.ring()

    async def _release_unknown(self, mine: Member, now: float) -> None:
        deliveries, fences = list(mine.deliveries), list(mine.fences)
        await self._connections.transaction(
            partial(claiming.release_unknown, worker=mine.number, deliveries=deliveries, fences=fences, now=now)
        )
        mine.in_doubt = False

    async def _look_from_the_start(self, names: Collection[str]) -> None:
        if self._positions.outdated:
            self._positions.looked(*await self._read(partial(claiming.look, names=names)))

    async def _forget(self, now: float) -> None:
        await self._write(partial(publishing.forget_ids, before=now - self._options.dedupe_window))
        await self._write(partial(broadcasting.forget_frames, before=now - self._options.broadcast_kept))

    async def _join_or_write(self, operation: Operation[T]) -> T:
        transaction = self._db.current()
        if transaction is None:
            result = await self._write(operation)
            self._bell.ring()
            return result
        result = await run_in(transaction, operation, self._server)
        self._announce(transaction)
        return result

    def _announce(self, transaction: Transaction) -> Announcement:
        return transaction.participant(self, lambda: Announcement(self._bell.ring))

    async def _write(self, operation: Operation[T]) -> T:
        return await self._connections.run(operation)

    async def _change(self, operation: Operation[T]) -> T:
        result = await self._connections.transaction(operation)
        self._bell.ring()
        return result

    async def _change_registry(self, operation: Operation[T]) -> T:
        # Whoever waits for the registry keeps every publisher waiting: rather often and briefly than once and long.
        deadline = time.monotonic() + self._options.patience
        while True:
            try:
                return await self._change(operation)
            except KeyBusy:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(REGISTRY_PAUSE)

    async def _read(self, operation: Operation[T], *, several: bool = False) -> T:
        if several:
            return await self._connections.transaction(operation, "read")
        return await self._connections.run(operation, writing=False)


def _own(member: Membership) -> Member:
    return cast("Member", member)
