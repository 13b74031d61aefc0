"""One worker's hold on the queue."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.bells import Bells
from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.holdings import Holdings
from infra.mq.drivers.redis.lease import Lease
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.settling import Batch
from infra.mq.drivers.redis.wire import claims_of, mailbox_claims_of, microseconds, seconds
from infra.mq.errors import QueueClosed, QueueError, QueueUnavailable
from infra.mq.types import Claim, Settlement, WorkerInfo

DEAD = -2
"""What a script answers to a worker whose lease is gone."""

MAX_CLAIMS = 1000
"""How many claims of one subscription a script hands out at most, so that it keeps no other client waiting long."""

pack = msgspec.msgpack.encode

LONG = 72
"""How long the names of owners are, in bytes. Hashes with values over 64 bytes are never kept as a list that is
searched from its start: with a hundred deliveries claimed at once, that took most of a claim's time."""

Wanted = list[tuple[str, Route, int]]


class RedisConsumer:
    """A `Consumer` of `RedisQueue.consumer`."""

    def __init__(
        self, core: Core, bells: Bells, info: WorkerInfo, lease: Lease, forget: Callable[["RedisConsumer"], None]
    ) -> None:
        self._core = core
        self._info = info
        self._lease = lease
        self._name = owner_name(info)
        self._forget = forget
        self._bells = bells
        self._changed = asyncio.Event()
        self._bell = bells.sleeper(self._name, self)
        self._holdings = Holdings()
        self._asleep: dict[str, tuple[str, Route]] = {}
        """Where this consumer left its bell, and under which name it wants that subscription."""

        self._sleeps = 0
        self._handed_over: list[Claim] = []
        self._void = 0
        """What was handed over to sleeps before this one has been found otherwise."""

        self._due_at: float | None = None
        self._woken = False
        self._busy = False
        self._closed = False
        self._in_doubt = False
        """Whether something may have been claimed that nobody here knows of."""

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
            if int(sleep) < self._void or self._closed:
                return
            if name is None or route is None:
                self._in_doubt = True
            else:
                self._handed_over += self._claims_of(name, route, ([message], ()))
        self._changed.set()

    def interrupted(self) -> None:
        """Hear that something may have been handed over that did not arrive."""
        self._in_doubt = True
        self._lease.interrupted()
        self._changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        self._core.check()
        if not settlements:
            return []
        batch = Batch(settlements, self._core.keys)
        link = self._core.link("settle")
        arguments = (self._core.now(), self._name, batch.packed())
        fenced = await self._heard(link.safely(scripts().settle, batch.keys(), *arguments))
        self._holdings.remove(settlements)
        return [settlements[index] for index in sorted(fenced)]

    async def isolate(self, claim: Claim) -> bool:
        delivery_id = str(claim.deliveries[0].id)
        group = self._core.keys.group(delivery_id[32:40])
        name = (claim.ordering_key or "") if claim.ordered else delivery_id[:31]
        link = self._core.link("settle")
        arguments = (self._name, int(claim.ordered), name, claim.fence)
        return bool(await self._heard(link.safely(scripts().isolate, group, *arguments)))

    async def recover(self) -> int:
        self._check()
        options = self._core.options
        # Whoever has just reached the server again leaves others the time to do so, too.
        grace = microseconds(options.margin) if self._lease.held_for >= options.patience else ""

        async def ask(snapshot: Snapshot) -> Any:  # noqa: ANN401 - what the script answers
            flags = pack([it.kept.ordered for it in snapshot.all])
            arguments = (snapshot.version, self._core.now(), self._name, grace, flags)
            keys = [*self._keys("meta", "leases", "workers", "sleepers"), *_groups(snapshot.all)]
            return await self._core.link("admin").safely(scripts().recover, keys, *arguments)

        return int(await self._up_to_date(ask))

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        self._check()

        async def ask(snapshot: Snapshot) -> Any:  # noqa: ANN401 - what the script answers
            routes, counts, places = [], [], []
            for name, events in known.items():
                route = snapshot.by_name.get(name)
                parked = [it for it in events if route is not None and it in route.kept.events]
                if route is not None and parked:
                    routes.append(route)
                    counts.append((route.kept.ordered, len(parked)))
                    places += [self._core.keys.parking(route.kept.sid, it) for it in parked]
            if not routes:
                return 0
            keys = [*self._keys("meta"), *_groups(routes), *places]
            arguments = (snapshot.version, self._core.now(), pack(counts))
            return await self._core.link("admin").safely(scripts().unpark, keys, *arguments)

        return int(await self._up_to_date(ask))

    def renew(self) -> bool:
        return self._lease.renew()

    def abandon(self) -> None:
        self._lease.abandon()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._bells.forget(self._bell)
        self.wake()
        try:
            if not self.lost:
                await self._up_to_date(self._leave)
        except BaseException:
            # Nothing was given back: as a dead worker's, its claims are taken over.
            self._lease.drop()
            raise
        finally:
            if self._holdings.keeps and not self.lost:
                self._stay_alive()
            else:
                self._lease.close()
                self._forget(self)

    def keep(self, claim: Claim) -> None:
        self._holdings.keep(claim)

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

    def _stay_alive(self) -> None:
        """Keep the lease for as long as this process lives, for a handler that will not stop."""

        def beat() -> None:
            pause = threading.Event()
            while not self.lost:
                pause.wait(self._core.options.lease / 3)
                with contextlib.suppress(QueueUnavailable):
                    self._lease.renew()
            self._lease.close()

        threading.Thread(target=beat, name="redis lease", daemon=True).start()

    async def _leave(self, snapshot: Snapshot) -> Any:  # noqa: ANN401 - what the script answers
        keys = [*self._keys("meta", "leases", "workers", "sleepers"), *_groups(snapshot.all)]
        kept = pack(self._holdings.kept(snapshot.all))
        arguments = (snapshot.version, self._core.now(), self._name, kept)
        return await self._core.link("admin").safely(scripts().leave, keys, *arguments)

    def _check(self) -> None:
        self._core.check()
        if self._closed or self.lost:
            raise QueueClosed(f"worker {self._info.id} {'is closed' if self._closed else 'has lost its lease'}")

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
        if not self._handed_over:
            return []
        taken = [it for it in self._handed_over if it.subscription in wanted]
        self._handed_over = [it for it in self._handed_over if it.subscription not in wanted]
        return taken

    async def _claim(self, wanted: Mapping[str, int], *, sleep: bool) -> list[Claim]:
        if self._in_doubt and (adopted := await self._adopt()):
            return adopted
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
            if answer == DEAD:
                self._lease.drop()
                self._check()
            if answer != OUTDATED:
                return self._take(wants, *answer)
            await self._core.catalog.load(snapshot)

    async def _ask_for(self, snapshot: Snapshot, wants: Wanted, *, sleep: bool) -> Any:  # noqa: ANN401 - as it says
        asked = {route.kept.sid for _, route, _ in wants}
        risen = [route for sid, (_, route) in self._asleep.items() if sid not in asked]
        limits = [(route.kept.ordered, limit) for _, route, limit in wants]
        limits += [(route.kept.ordered, 0) for route in risen]
        keys = [
            *self._keys("meta", "leases", "plans", "planned", "sleepers"),
            *_groups([it for _, it, _ in wants]),
            *_groups(risen),
        ]
        self._sleeps += 1
        before, self._asleep = self._asleep, self._asleep | {it.kept.sid: (name, it) for name, it, _ in wants}
        bells = (self._bell if sleep else "", self._bell if before else "")
        arguments = (snapshot.version, self._core.now(), self._name, *bells, pack(limits), self._sleeps)
        link = self._core.link("fetch")
        await self._core.measure(link)
        try:
            answer = await self._heard(link.safely(scripts().claim, keys, *arguments))
        except BaseException:
            self._in_doubt = True
            raise
        if not isinstance(answer, int) and not sleep:
            self._asleep = {}
        return answer

    def _take(self, wants: Wanted, due: bytes, answers: Sequence[Any]) -> list[Claim]:
        claims: list[Claim] = []
        for (name, route, _), answer in zip(wants, answers, strict=False):
            claims += self._claims_of(name, route, answer)
        self._due_at = seconds(due) if due else None
        return claims

    def _claims_of(self, name: str, route: Route, answer: Sequence[Any]) -> list[Claim]:
        kept = route.kept
        make = mailbox_claims_of if kept.ordered else claims_of
        claims = make(answer, name, kept.sid)
        self._holdings.add(kept.sid, claims, ordered=kept.ordered)
        return claims

    async def _adopt(self) -> list[Claim]:
        """Return what is owned, but was never heard of: an answer or a bell did not arrive."""
        self._in_doubt = False
        routes = self._core.catalog.snapshot.all
        known = pack(self._holdings.known(routes))
        keys = [*self._keys("sleepers"), *_groups(routes)]
        self._void = self._sleeps + 1
        try:
            answer = await self._heard(self._core.link("fetch").safely(scripts().adopt, keys, self._name, known))
        except BaseException:
            self._in_doubt = True
            raise
        mine = self._info.subscriptions
        claims: list[Claim] = []
        for route, found in zip(routes, answer, strict=True):
            name = next((it for it in route.kept.names if it in mine), route.kept.name)
            claims += self._claims_of(name, route, found)
        return claims

    async def _up_to_date(self, ask: Callable[[Snapshot], Any]) -> Any:  # noqa: ANN401 - what the script answers
        while True:
            snapshot = self._core.catalog.snapshot
            answer = await self._heard(ask(snapshot))
            if answer == DEAD:
                self._lease.drop()
                raise QueueClosed(f"worker {self._info.id} has lost its lease")
            if answer != OUTDATED:
                return answer
            await self._core.catalog.load(snapshot)

    async def _heard(self, asked: Any) -> Any:  # noqa: ANN401 - what the script answers
        try:
            return await asked
        except QueueUnavailable:
            self._lease.interrupted()
            raise

    def _keys(self, *names: str) -> list[str]:
        return [self._core.keys.of(name) for name in names]


def owner_name(info: WorkerInfo) -> str:
    """Return what a worker is called on the server."""
    return info.id.ljust(LONG, ".")


def _groups(routes: Collection[Route]) -> list[str]:
    return [key for route in routes for key in route.keys]
