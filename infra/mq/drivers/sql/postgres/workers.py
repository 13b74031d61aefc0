"""What this process's workers do to the queue."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog

from infra.clock import Clock
from infra.mq.drivers.sql.postgres import claiming, membership, settling
from infra.mq.drivers.sql.postgres.connections import Connections
from infra.mq.drivers.sql.postgres.lease import LeaseKeeper, LeaseMembership
from infra.mq.drivers.sql.postgres.positions import SCHEDULED, Positions
from infra.mq.drivers.sql.postgres.promotion import Promoter
from infra.mq.errors import QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable
from infra.mq.types import Claim, Settlement, WorkerInfo

LEAVE_TIMEOUT = 5.0
"""Seconds that a worker which stops tries to give back what it holds; others take over what it could not."""

LEAVE_PAUSE = 0.05
"""Seconds between two attempts to give back what other transactions hold."""

RENEWED_WITHIN = 0.6
"""In leases: a worker that is alive has renewed its lease by then."""

ORPHANS_SLOW = 0.05
"""Seconds after which a search for claims without a worker was slow."""

ORPHANS_SHARE = 0.02
"""Of the time, slow searches may take so much."""

PROMOTED_AT_ONCE = 10
"""How many steps of promotion a claim makes at most that finds nothing else."""

_log = structlog.stdlib.get_logger(__name__)


class Workers:
    """Joins, claims, settles, recovers and leaves for the workers of this process.

    Args:
        connections: To the server.
        keeper: Renews the leases of the workers, and observes those of others.
        clock: The queue's.
        wake: Called when there may be something to claim that was not seen before.
    """

    def __init__(self, connections: Connections, keeper: LeaseKeeper, clock: Clock, wake: Callable[[], object]) -> None:
        self._connections = connections
        self._keeper = keeper
        self._clock = clock
        self._positions = Positions()
        self._promoter = Promoter(connections, self._positions)
        self._members: set[LeaseMembership] = set()
        self._wake = wake
        self._scan_task: asyncio.Task[None] | None = None
        self._orphans_at = 0.0

    async def close(self) -> None:
        """End what goes on beside the workers' own calls."""
        if (scan := self._scan_task) is not None:
            scan.cancel()
            await asyncio.wait((scan,))

    async def join(self, info: WorkerInfo, now: float) -> LeaseMembership:
        """Register a live worker.

        Raises:
            QueueUnavailable: also where no thread can be had to renew its lease.
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
        """Give back all but `keep`, and unregister the worker unless it keeps something.

        Raises:
            TimeoutError: not all could be given back in time.
        """
        self._members.discard(mine)
        if keep:
            self._keeper.linger(mine.number)
        async with asyncio.timeout(LEAVE_TIMEOUT):
            if await self._connections.transaction(partial(membership.begin_to_leave, worker=mine.number)):
                step = partial(membership.leave, worker=mine.number, keep=keep, now=now)
                more = True
                while more:
                    released, more = await self._connections.transaction(step)
                    if more and not released:
                        await asyncio.sleep(LEAVE_PAUSE)
        mine.left()

    async def next_due(self, names: Collection[str]) -> float | None:
        """Return when there may be something to claim for these names."""
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

    async def claim(self, mine: LeaseMembership, wants: Mapping[str, int], now: float) -> list[Claim]:
        """Claim what is due; what a lost answer may have claimed is given back first."""
        if mine.owned.uncertain:
            await self._release_unknown(mine, now)
        self._start_scan(wants)
        if self._promoter.is_due(now):
            await self._promoter.step(now)
        claims = await self._claim(mine, wants, now)
        for _ in range(PROMOTED_AT_ONCE):
            if claims or not self._promoter.is_due(now):
                break
            await self._promoter.step(now)
            claims = await self._claim(mine, wants, now)
        return claims

    async def settle(self, mine: LeaseMembership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        """Carry out settlements in steps; return those that were fenced."""
        fenced: list[Settlement] = []
        for step in settling.steps_of(settlements):
            operation = partial(settling.settle, worker=mine.number, settlements=step, now=now)
            fenced += await self._connections.run(operation)
            mine.owned.settled(step)
        return fenced

    async def recover(self, now: float) -> int:
        """Take over from dead workers, from owners that no worker has, and from own claims whose answer was lost."""
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

    async def user_of(self, names: Collection[str]) -> str | None:
        """Return the id of a worker that has one of these listeners and is alive, though its lease may look ended."""
        operation = partial(membership.silent, lease=self._keeper.lease)
        before = await self._connections.run(operation, writing=False)
        concerned = [number for number, it in before.items() if not it[1].isdisjoint(names)]
        if not concerned:
            return None
        await asyncio.sleep(self._keeper.lease * RENEWED_WITHIN)
        after = dict(await self._connections.run(membership.leases, writing=False))
        renewed = [it for it in concerned if after.get(it, 0.0) not in {0.0, before[it][2]}]
        return before[renewed[0]][0] if renewed else None

    async def _orphans(self) -> list[int]:
        # While a transaction is left open, this reads past all that was claimed since.
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

    async def _claim(self, mine: LeaseMembership, wants: Mapping[str, int], now: float) -> list[Claim]:
        since, epoch = mine.owned.latest, mine.epoch
        *starts, scheduled_start = self._positions.starts([*wants, SCHEDULED])
        operation = partial(
            claiming.claim,
            worker=mine.number,
            epoch=epoch,
            wants=wants,
            starts=starts,
            now=now,
            scheduled_start=scheduled_start,
        )
        try:
            claims, latest, scheduled_due = await self._connections.run(operation)
        except QueueIndeterminate as error:
            # What it may have claimed is given back before the next claim; what runs here goes on.
            mine.owned.mark_uncertain(since)
            raise QueueUnavailable(str(error)) from error
        except asyncio.CancelledError:
            mine.owned.mark_uncertain(since)
            raise
        self._positions.claimed(latest)
        if mine.owned.uncertain or mine.epoch != epoch:
            # Another claim's answer was lost meanwhile: what is given back for that may include these.
            mine.owned.mark_uncertain(since)
            return []
        mine.owned.claimed(claims)
        self._promoter.expect(due=scheduled_due)
        return claims

    async def _release_all_unknown(self, now: float) -> None:
        """Release what claims took whose answer was lost, or whose caller was cancelled, of all workers here."""
        for mine in list(self._members):
            if mine.owned.uncertain:
                with suppress(QueueClosed):  # its own next claim says so
                    await self._release_unknown(mine, now)

    async def _release_unknown(self, mine: LeaseMembership, now: float) -> None:
        since, known = mine.owned.unknown()
        epoch = await self._connections.transaction(
            partial(membership.release_unknown, worker=mine.number, since=since, known=known, now=now)
        )
        if epoch is None:
            raise QueueClosed("this worker was taken for dead: its claims were given to others")
        mine.epoch = epoch
        mine.owned.mark_certain()

    def _start_scan(self, names: Collection[str]) -> None:
        # Beside the claims, which go on from where the latest one ended: it may read much that was handled.
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
        self._wake()
