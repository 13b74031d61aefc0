"""The SQL driver's `Consumer`."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from infra.clock import Clock
from infra.db.cancellation import finish
from infra.mq.drivers.sql.dialect import Membership, QueueDialect
from infra.mq.errors import QueueClosed, QueueIndeterminate, QueueUnavailable
from infra.mq.refusals import worker_ended
from infra.mq.types import Claim, ClaimLimits, Settlement, WorkerInfo
from infra.ownership import LoopOwner


class SqlConsumer:
    """The `Consumer` of one worker, opened by `SqlQueue.consumer`."""

    def __init__(
        self,
        dialect: QueueDialect,
        clock: Clock,
        info: WorkerInfo,
        limits: ClaimLimits,
        member: Membership,
        owner: LoopOwner,
        forget: Callable[["SqlConsumer"], None],
    ) -> None:
        self._owner = owner
        self._dialect = dialect
        self._workers = dialect.workers
        self._clock = clock
        self._info = info
        self._limits = limits
        self._member = member
        self._forget = forget
        self._changed = asyncio.Event()
        self._woken = False
        self._closed = False
        self._kept: list[Claim] = []
        self._next_due: float | None = None
        self._expecting: set[str] = set()
        """The subscriptions whose latest claim found as many as it wanted, so that the next needs no poll before it."""

    @property
    def info(self) -> WorkerInfo:
        return self._info

    @property
    def valid_until(self) -> float:
        return self._member.valid_until

    @property
    def lost(self) -> bool:
        return not self._member.alive

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        self._check()
        wanted = {name: limit for name, limit in wants.items() if limit > 0}
        claims = await (self._wait(wanted, self._clock.monotonic() + wait) if wait > 0 else self._claim(wanted))
        self._woken = False
        # If the consumer was closed or lost meanwhile, its claims are released or taken over.
        self._check()
        return claims

    def wake(self) -> None:
        self._woken = True
        self._changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        self._owner.is_here()
        if not settlements:
            return []
        try:
            return await self._workers.settle(self._member, settlements, self._clock.time())
        except QueueIndeterminate as error:
            # Repeating the settlements is safe: those that were carried out are fenced, or delete no row.
            raise QueueUnavailable(str(error)) from error

    async def isolate(self, claim: Claim) -> bool:
        self._owner.is_here()
        return await self._workers.isolate(self._member, claim)

    async def recover(self) -> int:
        self._check()
        return await self._workers.recover(self._clock.time())

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        self._check()
        return await self._workers.unpark(known, self._clock.time())

    def renew(self) -> bool:
        return self._member.renew()

    def abandon(self) -> None:
        self._member.abandon()

    async def close(self) -> None:
        self._owner.is_here()
        if self._closed:
            return
        self._closed = True
        if not self._kept:
            # With kept claims the queue must still know this consumer, to abandon it when the queue is closed.
            self._forget(self)
        self.wake()
        if self.lost:
            return
        left = await finish(self._workers.leave(self._member, self._kept, self._clock.time()))
        if left.task.cancelled():
            # All tasks of the event loop were cancelled; a second attempt is not.
            left = await finish(self._workers.leave(self._member, self._kept, self._clock.time()))
        if left.failure is not None:
            # Some claims were not released. Abandon the lease so that they are recovered.
            self._member.abandon()
            raise left.failure
        if left.cancelled is not None:
            raise left.cancelled

    def keep(self, claim: Claim) -> None:
        self._kept.append(claim)

    def _check(self) -> None:
        self._owner.is_here()
        if self._closed or self.lost:
            raise worker_ended(self._info.id, closed=self._closed)

    async def _wait(self, wanted: Mapping[str, int], deadline: float) -> list[Claim]:
        # Before the first claim, so that a change during that claim is not missed.
        self._dialect.watch(self._changed)
        try:
            while (left := deadline - self._clock.monotonic()) > 0:
                self._changed.clear()
                if claims := await self._claim(wanted):
                    return claims
                if self._woken:
                    break
                due_in = left if self._next_due is None else self._next_due - self._clock.time()
                await self._clock.wait(self._changed, min(left, due_in))
                self._check()
        finally:
            self._dialect.unwatch(self._changed)
        return []

    async def _claim(self, wanted: Mapping[str, int]) -> list[Claim]:
        now = self._clock.time()
        if self._expecting.isdisjoint(wanted):
            # The poll takes no lock; without due deliveries no claim is tried.
            self._next_due = await self._workers.next_due(wanted.keys())
            if self._next_due is None or self._next_due > now:
                return []
        self._expecting.difference_update(wanted)
        try:
            claims = await self._workers.claim(self._member, wanted, self._limits, now)
        except QueueIndeterminate as error:
            self._check()
            # The claim reply was lost. Abandon the lease so that the claims are recovered.
            self._member.abandon()
            raise QueueUnavailable(str(error)) from error
        except QueueClosed:
            self._member.abandon()
            raise
        found = Counter([it.subscription for it in claims])
        self._expecting.update([name for name, count in found.items() if count >= wanted.get(name, 0)])
        self._next_due = None if claims else now
        return claims
