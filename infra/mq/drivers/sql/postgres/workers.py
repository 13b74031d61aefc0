"""The operations of this process's workers on PostgreSQL: join, claim, settle, recover and leave."""

import asyncio
import contextvars
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog

from infra.clock import Clock
from infra.db.postgresql import PostgreSQL
from infra.mq.drivers.sql.postgres import claiming, membership, settling
from infra.mq.drivers.sql.postgres.access import ServerAccess
from infra.mq.drivers.sql.postgres.connections import QueueConnections
from infra.mq.drivers.sql.postgres.forgetting import Forgetter
from infra.mq.drivers.sql.postgres.lease import LeaseKeeper, LeaseMembership
from infra.mq.drivers.sql.postgres.notifier import Notifier
from infra.mq.drivers.sql.postgres.positions import SCHEDULED, Positions
from infra.mq.drivers.sql.postgres.promotion import Promoter
from infra.mq.errors import QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable
from infra.mq.leases import RENEWED_WITHIN
from infra.mq.types import Claim, ClaimLimits, Outcome, Settlement, WorkerInfo

LEAVE_TIMEOUT = 5.0
"""Seconds that a leaving worker tries to release its claims; the remaining ones are taken over."""

LEAVE_PAUSE = 0.05
"""Seconds between two attempts to release claims that other transactions have locked."""

ORPHANS_SLOW = 0.05
"""Seconds from which a search for claims without a worker counts as slow."""

ORPHANS_SHARE = 0.02
"""The fraction of time that slow searches may take."""

PROMOTED_AT_ONCE = 10
"""The maximum number of promotion steps in a claim that finds nothing else."""

_log = structlog.stdlib.get_logger(__name__)


class PostgresWorkers:
    """The `WorkerOperations` on one database: the workers of this process, with their leases and positions.

    Args:
        db: The database, whose address errors name.
        connections: The queue's connections to the server.
        access: Runs long work in steps.
        keeper: Renews the leases of these workers, and observes the leases of all workers.
        clock: The queue's clock.
        notifier: Notified of changes that make deliveries due.
        forgetter: Removes expired rows after each recovery.
    """

    def __init__(
        self,
        db: PostgreSQL,
        connections: QueueConnections,
        access: ServerAccess,
        keeper: LeaseKeeper,
        clock: Clock,
        notifier: Notifier,
        forgetter: Forgetter,
    ) -> None:
        self._db = db
        self._connections = connections
        self._access = access
        self._keeper = keeper
        self._clock = clock
        self._positions = Positions()
        self._promoter = Promoter(connections, self._positions)
        self._members: set[LeaseMembership] = set()
        self._notifier = notifier
        self._forgetter = forgetter
        self._scan_task: asyncio.Task[None] | None = None
        self._orphans_at = 0.0

    async def close(self) -> None:
        """Cancel the background scan."""
        if (scan := self._scan_task) is not None:
            scan.cancel()
            await asyncio.wait((scan,))

    async def join(self, info: WorkerInfo, now: float) -> LeaseMembership:
        """Register a live worker.

        Raises:
            QueueUnavailable: the server is unavailable, or no thread can be started to renew the lease.
        """
        try:
            await asyncio.to_thread(self._keeper.start)
        except (OSError, RuntimeError) as error:
            raise QueueUnavailable(f"this process cannot start a thread to renew leases: {error}") from error
        joined = self._clock.monotonic()
        operation = partial(membership.join, info=info, now=now, lease=self._keeper.lease)
        number, epoch = await self._connections.run(operation)
        member = LeaseMembership(number, epoch, self._keeper, self._clock, joined)
        self._members.add(member)
        return member

    async def leave(self, mine: LeaseMembership, keep: Collection[Claim], now: float) -> None:
        """Release all claims but `keep`, and unregister the worker if it keeps none.

        Raises:
            QueueUnavailable: some claims were not released within `LEAVE_TIMEOUT`.
        """
        self._members.discard(mine)
        if keep:
            self._keeper.linger(mine.number)
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self._release_all(mine, keep, now)
        except TimeoutError as error:
            raise QueueUnavailable(f"PostgreSQL at {self._db.address.where} does not answer") from error
        mine.left()
        self._notifier.notify()

    async def next_due(self, names: Collection[str]) -> float | None:
        """Return the time at which a delivery of these subscriptions may be due."""
        await self._release_all_unknown(self._clock.time())
        self._start_scan(names)
        *starts, scheduled_start = self._positions.starts([*names, SCHEDULED])
        operation = partial(claiming.next_due, names=names, starts=starts, scheduled_start=scheduled_start)
        due_at, scheduled = await self._connections.run(operation, writing=False)
        if scheduled is not None:
            self._promoter.expect(due=scheduled <= self._clock.time())
            scheduled = self._promoter.next_due(scheduled)
        scan_in = None if self._scan_task is not None else self._positions.scan_in
        scan_at = None if scan_in is None else self._clock.time() + scan_in
        return min((it for it in (due_at, scheduled, scan_at) if it is not None), default=None)

    async def claim(
        self, mine: LeaseMembership, wants: Mapping[str, int], limits: ClaimLimits, now: float
    ) -> list[Claim]:
        """Claim due deliveries; first release the claims of earlier calls whose answer was lost."""
        if mine.owned.uncertain:
            await self._release_unknown(mine, now)
        self._start_scan(wants)
        if self._promoter.is_due(now):
            await self._promoter.step(now)
        claims = await self._claim(mine, wants, limits, now)
        for _ in range(PROMOTED_AT_ONCE):
            if claims or not self._promoter.is_due(now):
                break
            await self._promoter.step(now)
            claims = await self._claim(mine, wants, limits, now)
        return claims

    async def settle(self, mine: LeaseMembership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        """Carry out settlements in steps; return the fenced ones."""
        fenced: list[Settlement] = []
        try:
            for step in settling.steps_of(settlements):
                operation = partial(settling.settle, worker=mine.number, settlements=step, now=now)
                fenced += await self._connections.run(operation)
                mine.owned.settled(step)
        finally:
            if any(it.claim.ordered or it.outcome is not Outcome.DONE for it in settlements):
                self._notifier.notify()
        return fenced

    async def isolate(self, mine: LeaseMembership, claim: Claim) -> bool:
        """Store that the claim's first delivery runs alone; return False if the claim is fenced."""
        return await self._connections.run(partial(settling.isolate, worker=mine.number, claim=claim))

    async def recover(self, now: float) -> int:
        """Take over the claims of dead workers and unregistered owners; release own claims whose answer was lost.

        Also remove expired ids and broadcasts.
        """
        count = await self._recover(now)
        if count:
            self._notifier.notify()
        await self._forgetter.forget(now)
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        """Make parked deliveries due whose needs are known; return their number."""
        if not await self._access.read(partial(membership.has_parked, known=known)):
            return 0
        return await self._access.in_steps(partial(membership.unpark, known=known, now=now))

    async def user_of(self, names: Collection[str]) -> str | None:
        """Return the id of a live worker with one of these listeners although its lease looks expired; else None."""
        operation = partial(membership.silent, lease=self._keeper.lease)
        before = await self._connections.run(operation, writing=False)
        concerned = [number for number, it in before.items() if not it[1].isdisjoint(names)]
        if not concerned:
            return None
        await asyncio.sleep(self._keeper.lease * RENEWED_WITHIN)
        after = dict(await self._connections.run(membership.leases, writing=False))
        renewed = [it for it in concerned if after.get(it, 0.0) not in {0.0, before[it][2]}]
        return before[renewed[0]][0] if renewed else None

    async def _release_all(self, mine: LeaseMembership, keep: Collection[Claim], now: float) -> None:
        if not await self._connections.transaction(partial(membership.begin_to_leave, worker=mine.number)):
            return
        step = partial(membership.leave, worker=mine.number, keep=keep, now=now)
        more = True
        while more:
            released, more = await self._connections.transaction(step)
            if more and not released:
                await asyncio.sleep(LEAVE_PAUSE)

    async def _recover(self, now: float) -> int:
        self._members = {it for it in self._members if it.alive}
        await self._release_all_unknown(now)
        asked_at = self._keeper.now()
        leases = await self._connections.run(membership.leases, writing=False)
        self._keeper.observer.observe(leases, asked_at, self._keeper.now())
        count = 0
        for number, lease_until in self._keeper.observer.dead(asked_at):
            if not self._is_alive_here(number):
                await self._connections.transaction(partial(membership.end, worker=number, lease_until=lease_until))
                count += await self._take_over(number, now, orphan=False)
        for number in await self._orphans():
            count += await self._take_over(number, now, orphan=True)
        return count

    async def _orphans(self) -> list[int]:
        # While another transaction stays open, this search reads over all rows claimed since then.
        began = time.monotonic()
        if began < self._orphans_at:
            return []
        found = await self._connections.run(membership.orphans, writing=False)
        ended = time.monotonic()
        self._orphans_at = ended + (ended - began) / ORPHANS_SHARE if ended - began > ORPHANS_SLOW else ended
        return found

    async def _take_over(self, number: int, now: float, *, orphan: bool) -> int:
        step = partial(membership.take_over, worker=number, now=now, orphan=orphan)
        count, more = 0, True
        while more:
            charged, more = await self._connections.transaction(step)
            count += charged
        return count

    def _is_alive_here(self, number: int) -> bool:
        return any(
            it.number == number and it.alive and self._clock.monotonic() < it.valid_until for it in self._members
        )

    async def _claim(
        self, mine: LeaseMembership, wants: Mapping[str, int], limits: ClaimLimits, now: float
    ) -> list[Claim]:
        since, epoch = mine.owned.latest, mine.epoch
        *starts, scheduled_start = self._positions.starts([*wants, SCHEDULED])
        operation = partial(
            claiming.claim,
            worker=mine.number,
            epoch=epoch,
            wants=wants,
            limits=limits,
            starts=starts,
            now=now,
            scheduled_start=scheduled_start,
        )
        try:
            claims, latest, scheduled_due = await self._connections.run(operation)
        except QueueIndeterminate as error:
            # Its claims, if any, are released before the next claim; running handlers continue.
            mine.owned.mark_uncertain(since)
            raise QueueUnavailable(str(error)) from error
        except asyncio.CancelledError:
            mine.owned.mark_uncertain(since)
            raise
        self._positions.claimed(latest)
        if mine.owned.uncertain or mine.epoch != epoch:
            # The answer to another claim was lost meanwhile, and its release may include these claims.
            mine.owned.mark_uncertain(since)
            return []
        mine.owned.claimed(claims)
        self._promoter.expect(due=scheduled_due)
        return claims

    async def _release_all_unknown(self, now: float) -> None:
        """Release the claims of this process's workers whose answer was lost or whose caller was cancelled."""
        for mine in list(self._members):
            if mine.owned.uncertain:
                with suppress(QueueClosed):  # the next claim of that worker raises it
                    await self._release_unknown(mine, now)

    async def _release_unknown(self, mine: LeaseMembership, now: float) -> None:
        while mine.owned.uncertain:
            lost, expected = mine.owned.lost_answers, mine.epoch
            since, known = mine.owned.unknown()
            operation = partial(
                membership.release_unknown, worker=mine.number, epoch=expected, since=since, known=known, now=now
            )
            answer = await self._connections.transaction(operation)
            if answer is None or answer[0] < expected:  # taken over; or a failover lost the latest epochs
                raise QueueClosed("this worker is considered dead: its claims were taken over")
            epoch, released = answer
            mine.epoch = max(mine.epoch, epoch)
            if released:
                mine.owned.mark_certain(lost)

    def _start_scan(self, names: Collection[str]) -> None:
        # In the background, since it may read over many handled rows; claims continue from their positions meanwhile.
        if self._positions.scan_due and self._scan_task is None:
            loop = asyncio.get_running_loop()
            self._scan_task = loop.create_task(self._scan(names), context=contextvars.Context())

    async def _scan(self, names: Collection[str]) -> None:
        try:
            operation = partial(claiming.scan, names=names)
            seconds, due = await self._connections.run(operation, writing=False)
        except QueueError as error:
            _log.debug("scan from start failed", error=str(error))
        else:
            self._positions.scanned(seconds, due)
        finally:
            self._scan_task = None
        self._notifier.wake()
