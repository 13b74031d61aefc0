"""One worker's hold on the queue."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.bells import Bells
from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import owner_name
from infra.mq.drivers.redis.lease import Lease
from infra.mq.drivers.redis.ownership import PAGE, Ownership
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.retiring import finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.settling import Batch, in_steps
from infra.mq.drivers.redis.takeover import Audit, find_dead, forget, give_back, take_all, take_over, unpark
from infra.mq.drivers.redis.wire import claims_of, mailbox_claims_of, seconds
from infra.mq.errors import QueueClosed, QueueError, QueueUnavailable
from infra.mq.queue import FETCH_BYTES
from infra.mq.types import Claim, Settlement, WorkerInfo

DEAD = -2
"""What a script answers to a worker whose lease is gone."""

VOID = -3
"""What `claim.lua` answers to a claim that its worker has given up for lost."""

AT_ONCE = 0.0
"""The due time that `claim.lua` answers if it claimed nothing, but did not get to all that may be due."""

MAX_CLAIMS = 1000
"""How many claims of one subscription a script hands out at most, so that it keeps no other client waiting long."""

pack = msgspec.msgpack.encode

Wanted = list[tuple[str, Route, int]]


class RedisConsumer:
    """A `Consumer` of `RedisQueue.consumer`."""

    def __init__(
        self, core: Core, bells: Bells, info: WorkerInfo, lease: Lease, forget: Callable[["RedisConsumer"], None]
    ) -> None:
        self._core = core
        self._info = info
        self._lease = lease
        self._name = owner_name(info.id)
        self._forget = forget
        self._bells = bells
        self._changed = asyncio.Event()
        self.bell = bells.sleeper(self._name, self)
        """By what others wake this consumer, or hand something over to it."""

        self._asleep: dict[str, tuple[str, Route]] = {}
        """Where this consumer left its bell, and under which name it wants that subscription."""

        self._due_at: float | None = None
        self._woken = False
        self._busy = False
        self._closed = False
        self._audit = Audit()
        self._ownership = Ownership(core, info, self._name, lease.interrupted, self._lose)

    @property
    def info(self) -> WorkerInfo:
        return self._info

    @property
    def valid_until(self) -> float:
        return self._lease.valid_until

    @property
    def lost(self) -> bool:
        return self._lease.lost

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        self._check()
        wanted = {name: min(limit, MAX_CLAIMS) for name, limit in wants.items() if limit > 0}
        self._changed.clear()
        if self._busy:
            # What the last call returned starts before more is asked for.
            await asyncio.sleep(0)
        if not (claims := self._take_handed_over(wanted)):
            claims = await self._claim(wanted, sleep=wait > 0 and not self._woken)
        if not claims and wait > 0 and not self._woken:
            claims = await self._wait(wanted, self._core.clock.monotonic() + wait)
        self._woken = False
        self._busy = bool(claims)
        # Closed or lost meanwhile: what was claimed is given back, or taken over.
        self._check()
        return claims

    def wake(self) -> None:
        self._woken = True
        self._changed.set()

    def wake_up(self, said: bytes) -> None:
        """Hear a bell; `said` is a delivery that was handed over, if there is one."""
        if said:
            sleep, sid, message = said.split(b" ", 2)
            name, route = self._asleep.get(sid.decode(), (None, None))
            if self._closed or not self._ownership.requests.handed_over(int(sleep)):
                return
            if name is None or route is None:
                self._ownership.in_doubt = True
            else:
                self._ownership.found += self._claims_of(name, route, ([message], ()))
        self._changed.set()

    def interrupted(self) -> None:
        """Hear that something may have been handed over that did not arrive."""
        self._ownership.in_doubt = self._ownership.unsure = True
        self._lease.interrupted()
        self._changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        self._core.check()
        if not settlements:
            return []
        fenced: list[Settlement] = []
        link, holdings = self._core.link("settle"), self._ownership.holdings
        for step in in_steps(settlements):
            batch = Batch(step, self._core.keys)
            arguments = (self._core.now(), self._name, batch.packed())
            holdings.settling(step)
            try:
                found = await self._ownership.hear(link.safely(scripts().settle, batch.keys(), *arguments))
            except BaseException:
                holdings.unsettled(step)
                raise
            holdings.settled(step)
            fenced += [step[index] for index in sorted(found)]
        return fenced

    async def isolate(self, claim: Claim) -> bool:
        delivery_id = str(claim.deliveries[0].id)
        group = self._core.keys.group(delivery_id[32:40])
        name = (claim.ordering_key or "") if claim.ordered else delivery_id[:31]
        link = self._core.link("settle")
        arguments = (self._name, int(claim.ordered), name, claim.fence)
        return bool(await self._ownership.hear(link.safely(scripts().isolate, group, *arguments)))

    async def recover(self) -> int:
        self._check()
        if self._ownership.unsure:
            await self._ownership.check_claims()
        hear, core = self._ownership.hear, self._core
        count = 0
        while True:
            # Whoever has just reached the server again leaves others the time to do so, too.
            patient = self._lease.held_for >= core.options.patience
            found = await hear(find_dead(core, self._name, patient=patient))
            if isinstance(found, int):
                raise self._lose()
            dead, retiring = found
            if retiring:
                await hear(finish_retiring(core.link("admin"), core.keys, core.now))
            dead = dead or await hear(self._audit.unknown_owners(core))
            if not dead:
                return count
            count += await hear(take_over(core, dead))

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        self._check()
        return await self._ownership.hear(unpark(self._core, known))

    def renew(self) -> bool:
        return self._lease.renew()

    def abandon(self) -> None:
        self._lease.abandon()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._bells.forget(self.bell)
        self.wake()
        try:
            if not self.lost:
                await self._leave()
        except BaseException:
            # Nothing was given back: as a dead worker's, its claims are taken over.
            self._lease.drop()
            raise
        finally:
            if self._ownership.holdings.keeps and not self.lost:
                self._lease.keep_alive()
            else:
                self._lease.close()
                self._forget(self)

    def keep(self, claim: Claim) -> None:
        self._ownership.holdings.keep(claim)

    async def shut(self) -> None:
        """Count as dead: the queue is closed."""
        lost, self._closed = self.lost, True
        self._lease.drop()
        self.wake()
        if not lost:
            with contextlib.suppress(QueueError):
                await self._core.link("admin").safely(scripts().abandon, self._keys("leases", "sleepers"), self._name)
        self._lease.close()
        self._forget(self)

    async def _leave(self) -> None:
        core = self._core
        owns_more, _ = await self._ownership.stop_claims("admin")
        holdings = self._ownership.holdings
        kept = holdings.kept()
        routes = (await core.catalog.load()).all
        ordered = {it.kept.sid: it.kept.ordered for it in routes}
        for sid, names in holdings.all().items():
            if sid not in ordered:
                continue
            spared = set(kept.get(sid, ()))
            owned = [it for it in names if it not in spared]
            for first in range(0, len(owned), PAGE):
                await give_back(core, sid, self._name, owned[first : first + PAGE], ordered=ordered[sid])
        if owns_more:
            for route in routes:
                await take_all(core, route, [self._name], dies=False, kept=kept.get(route.kept.sid, ()))
        await forget(core, [self._name], routes, lease=not holdings.keeps)

    def _check(self) -> None:
        self._core.check()
        if self._closed or self.lost:
            raise QueueClosed(f"worker {self._info.id} {'is closed' if self._closed else 'has lost its lease'}")

    def _lose(self) -> QueueClosed:
        """Count as lost; return the error that says so."""
        self._lease.drop()
        self._changed.set()
        return QueueClosed(f"worker {self._info.id} has lost its lease")

    async def _wait(self, wanted: Mapping[str, int], deadline: float) -> list[Claim]:
        clock = self._core.clock
        claims: list[Claim] = []
        while not (claims or self._woken) and (left := deadline - clock.monotonic()) > 0:
            timeout = min(left, self._core.options.poll)
            if self._due_at is not None:
                timeout = min(timeout, max(self._due_at - self._core.time(), 0.001))
            await clock.wait(self._changed, timeout)
            self._check()
            self._changed.clear()
            if claims := self._take_handed_over(wanted):
                break
            # The last look takes the bell back: nothing may be handed over to whoever does not wait for it.
            claims = await self._claim(wanted, sleep=self._may_sleep_until(deadline))
        return claims or self._take_handed_over(wanted)

    def _may_sleep_until(self, deadline: float) -> bool:
        return not self._woken and deadline > self._core.clock.monotonic()

    def _take_handed_over(self, wanted: Mapping[str, int]) -> list[Claim]:
        if not self._ownership.found:
            return []
        taken = [it for it in self._ownership.found if it.subscription in wanted]
        self._ownership.found = [it for it in self._ownership.found if it.subscription not in wanted]
        return taken

    async def _claim(self, wanted: Mapping[str, int], *, sleep: bool) -> list[Claim]:
        if self._ownership.in_doubt:
            await self._ownership.find_unheard()
            if claims := self._take_handed_over(wanted):
                return claims
        while True:
            snapshot = self._core.catalog.snapshot
            wants: Wanted = []
            for name, limit in wanted.items():
                route = snapshot.by_name.get(name)
                if route is not None and not route.kept.paused:
                    wants.append((name, route, limit))
            if not wants:
                if await self._core.catalog.load(None if wanted else snapshot) is snapshot:
                    return []
                continue
            answer = await self._ask_for(snapshot, wants, sleep=sleep)
            if answer == OUTDATED:
                await self._core.catalog.load(snapshot)
                continue
            claims = self._take(wants, *answer, sleep=sleep)
            if claims or self._due_at != AT_ONCE:
                return claims

    async def _ask_for(self, snapshot: Snapshot, wants: Wanted, *, sleep: bool) -> Any:  # noqa: ANN401 - as it says
        asked = {route.kept.sid for _, route, _ in wants}
        risen = [route for sid, (_, route) in self._asleep.items() if sid not in asked]
        limits = [(route.kept.ordered, limit) for _, route, limit in wants]
        limits += [(route.kept.ordered, 0) for route in risen]
        keys = [
            *self._keys("meta", "leases", "plans", "planned", "sleepers", "claims"),
            *_groups([it for _, it, _ in wants]),
            *_groups(risen),
        ]
        link = self._core.link("fetch")
        await self._core.measure(link)
        number = self._ownership.requests.next()
        before, self._asleep = self._asleep, self._asleep | {it.kept.sid: (name, it) for name, it, _ in wants}
        bells = (self.bell if sleep else "", self.bell if before else "")
        arguments = (snapshot.version, self._core.now(), self._name, *bells, pack(limits), number, FETCH_BYTES)
        try:
            answer = await self._ownership.hear(link.safely(scripts().claim, keys, *arguments))
        except BaseException:
            self._ownership.in_doubt = True
            raise
        if answer == DEAD:
            raise self._lose()
        if answer == VOID:
            self._ownership.in_doubt = True
            raise QueueUnavailable(f"worker {self._info.id}: this claim came too late")
        if answer != OUTDATED and not sleep:
            self._asleep = {}
        return answer

    def _take(self, wants: Wanted, due: bytes, answers: Sequence[Any], ended: int, *, sleep: bool) -> list[Claim]:
        claims: list[Claim] = []
        for (name, route, _), answer in zip(wants, answers, strict=False):
            claims += self._claims_of(name, route, answer)
        self._ownership.requests.answered(claimed=bool(claims), sleeps=sleep, ended=bool(ended))
        self._due_at = seconds(due) if due else None
        return claims

    def _claims_of(self, name: str, route: Route, answer: Sequence[Any]) -> list[Claim]:
        kept = route.kept
        make = mailbox_claims_of if kept.ordered else claims_of
        claims = make(answer, name, kept.sid)
        self._ownership.holdings.add(kept.sid, claims, ordered=kept.ordered)
        return claims

    def _keys(self, *names: str) -> list[str]:
        return [self._core.keys.of(name) for name in names]


def _groups(routes: Collection[Route]) -> list[str]:
    return [key for route in routes for key in route.keys]
