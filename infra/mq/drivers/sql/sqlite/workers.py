"""The operations of this process's workers on SQLite: join, claim, settle, recover and leave."""

import asyncio
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from infra.mq.drivers.sql.sqlite import claiming, membership, parking, settling
from infra.mq.drivers.sql.sqlite.access import FileAccess
from infra.mq.drivers.sql.sqlite.cancelled_claims import CancelledClaims
from infra.mq.drivers.sql.sqlite.presence import LockMembership, Presence
from infra.mq.drivers.sql.sqlite.writer import Weight
from infra.mq.errors import QueueClosed
from infra.mq.types import Claim, ClaimLimits, Outcome, Settlement, WorkerInfo

CLAIM_WEIGHT = Weight(100)
"""The weight of a claim in a group: about the number of rows that it changes."""


class SqliteWorkers:
    """The `WorkerOperations` on one file."""

    def __init__(self, access: FileAccess, presence: Presence) -> None:
        self._access = access
        self._writer = access.writer
        self._watcher = access.watcher
        self._clock = access.clock
        self._presence = presence
        self._claimed = False
        self._cancelled_claims = CancelledClaims(lambda member, ends: self.settle(member, ends, self._clock.time()))

    async def join(self, info: WorkerInfo, now: float) -> LockMembership:
        operation = self._access.at(now, partial(membership.join, info=info))
        return await self._presence.join(info, lambda: self._writer.run(operation))

    async def leave(self, member: LockMembership, keep: Collection[Claim], now: float) -> None:
        await self._presence.leave(member, keep, self._clock.time)
        self._cancelled_claims.forget(member)
        self._watcher.notify()

    async def next_due(self, names: Collection[str]) -> float | None:
        await self._cancelled_claims.release()
        if self._claimed:
            # The caller has begun tasks for these claims; they should not wait for the poll.
            self._claimed = False
            await asyncio.sleep(0)
        return self._watcher.read(partial(claiming.next_due, names=names))

    async def claim(
        self, member: LockMembership, wants: Mapping[str, int], limits: ClaimLimits, now: float
    ) -> list[Claim]:
        await self._cancelled_claims.release()
        # The handlers of the last call's claims start first; settlements of those that do not wait share the group.
        await asyncio.sleep(0)

        def operation(db: sqlite3.Connection, *, now: float) -> list[Claim]:
            if member.leaving:
                raise QueueClosed("this worker has left")
            return claiming.claim(db, member.number, wants, limits, now=now)

        on_cancelled = partial(self._cancelled_claims.add, member)
        claims: list[Claim] = await self._writer.run(
            self._access.at(now, operation), CLAIM_WEIGHT, on_cancelled=on_cancelled, accepts=False
        )
        if claims:
            self._claimed = True
            self._watcher.found_work()
        return claims

    async def settle(self, member: LockMembership, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        fenced: list[Settlement] = []
        for step in settling.in_steps(settlements):
            operation = partial(settling.settle, worker=member.number, settlements=step)
            frees = any(it.claim.ordered or it.outcome is not Outcome.DONE for it in step)
            fenced += await self._writer.run(
                self._access.at(now, operation), Weight(len(step)), accepts=False, notifies=frees
            )
        return fenced

    async def isolate(self, member: LockMembership, claim: Claim) -> bool:
        return await self._writer.run(partial(settling.isolate, worker=member.number, claim=claim))

    async def recover(self, now: float) -> int:
        await self._cancelled_claims.release()
        count = await self._presence.recover(self._clock.time)
        if count:
            self._watcher.notify()
        return count

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        count = 0
        for it in self._watcher.read(partial(parking.needed, known=known)):
            count += await self._access.in_steps(partial(parking.unpark_some, it=it, clock=self._clock.time))
        return count
