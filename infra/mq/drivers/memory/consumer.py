"""The memory driver's `Consumer`."""

from collections.abc import Collection, Mapping, Sequence

from infra.clock import Clock
from infra.mq.drivers.memory.backlog import Backlog, ByteBudget
from infra.mq.drivers.memory.store import Store
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.refusals import worker_ended
from infra.mq.types import Claim, Settlement, WorkerInfo


class MemoryConsumer:
    """A `Consumer` of `MemoryQueue.consumer`."""

    def __init__(self, worker: MemoryWorker, store: Store, backlogs: Mapping[str, Backlog]) -> None:
        self._worker = worker
        self._store = store
        self._backlogs = backlogs
        self._clock: Clock = store.clock
        self._woken = False

    @property
    def info(self) -> WorkerInfo:
        return self._worker.info

    @property
    def valid_until(self) -> float:
        return self._worker.valid_until

    @property
    def lost(self) -> bool:
        return not self._worker.alive()

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        self._check()
        claims = self._claim(wants)
        if not claims and wait > 0 and not self._woken:
            claims = await self._wait(wants, self._clock.monotonic() + wait)
        self._woken = False
        return claims

    def wake(self) -> None:
        self._woken = True
        self._worker.changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        now = self._clock.time()
        fenced = []
        for settlement in settlements:
            backlog = self._backlogs.get(settlement.claim.subscription)
            if backlog is None or not backlog.settle(settlement, self._worker, now):
                fenced.append(settlement)
        return fenced

    async def isolate(self, claim: Claim) -> bool:
        backlog = self._backlogs.get(claim.subscription)
        return backlog is not None and backlog.isolate(claim, self._worker)

    async def recover(self) -> int:
        self._check()
        recovered = 0
        for other in list(self._store.workers.values()):
            if not other.alive():
                recovered += sum(unit.take_over() for unit in list(other.holding))
                del self._store.workers[other.info.id]
        return recovered

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        self._check()
        return sum(self._backlogs[name].unpark(events) for name, events in known.items() if name in self._backlogs)

    def renew(self) -> bool:
        return self._worker.renew()

    def abandon(self) -> None:
        self._worker.abandon()

    async def close(self) -> None:
        worker = self._worker
        if worker.closed or not worker.alive():
            return
        worker.closed = True
        for unit in [it for it in worker.holding if it not in worker.kept]:
            unit.release()
        if not worker.holding:
            del self._store.workers[worker.info.id]
        worker.changed.set()

    def keep(self, claim: Claim) -> None:
        backlog = self._backlogs.get(claim.subscription)
        if backlog is not None:
            backlog.keep(claim, self._worker)

    def _check(self) -> None:
        worker = self._worker
        if worker.closed or not worker.alive():
            raise worker_ended(worker.info.id, closed=worker.closed)

    def _claim(self, wants: Mapping[str, int]) -> list[Claim]:
        self._store.agenda.promote(self._clock.time())
        claims: list[Claim] = []
        budget = ByteBudget(self._worker.limits.fetch_bytes)
        for name, limit in wants.items():
            backlog = self._backlogs.get(name)
            if backlog is not None and limit > 0 and not backlog.paused:
                claims += backlog.claim(limit, self._worker, name, budget)
        return claims

    async def _wait(self, wants: Mapping[str, int], deadline: float) -> list[Claim]:
        changed, agenda = self._worker.changed, self._store.agenda
        agenda.listeners.add(changed)
        try:
            while not self._woken and (left := deadline - self._clock.monotonic()) > 0:
                changed.clear()
                due_at = agenda.next_due()
                timeout = left if due_at is None else min(left, due_at - self._clock.time())
                await self._wait_for_change(wants, timeout)
                self._check()
                if claims := self._claim(wants):
                    return claims
        finally:
            agenda.listeners.discard(changed)
        return []

    async def _wait_for_change(self, wants: Mapping[str, int], timeout: float) -> None:
        backlogs = [self._backlogs[name] for name, limit in wants.items() if limit > 0 and name in self._backlogs]
        for backlog in backlogs:
            backlog.waiters.add(self._worker.changed)
        try:
            await self._clock.wait(self._worker.changed, timeout)
        finally:
            for backlog in backlogs:
                backlog.waiters.discard(self._worker.changed)
