"""The Redis driver's `Consumer`."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.claim_reconciler import PAGE, ClaimReconciler
from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import WAITING, owner_name
from infra.mq.drivers.redis.lease import Lease
from infra.mq.drivers.redis.notifier import RedisNotifier
from infra.mq.drivers.redis.registry import RegistrySnapshot, Route
from infra.mq.drivers.redis.retiring import finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.settling import SettlementBatch, in_steps
from infra.mq.drivers.redis.takeover import Audit, find_dead, release_all, release_claims, take_over, unpark, unregister
from infra.mq.drivers.redis.wire import claims_of, mailbox_claims_of, seconds
from infra.mq.errors import QueueClosed, QueueError, QueueUnavailable
from infra.mq.refusals import worker_ended
from infra.mq.types import Claim, ClaimLimits, Settlement, WorkerInfo

LEASE_LOST = -2
"""The answer of a script to a worker whose lease is lost."""

VOID = -3
"""The answer of `claim.lua` to a request that its worker has made void."""

AT_ONCE = 0.0
"""The due time that `claim.lua` answers if it claimed nothing, but has not checked all deliveries yet."""

FEW = 16
"""The largest number of claims whose handlers start before the next request is sent. With more, the server works on
that request while the handlers run."""

pack = msgspec.msgpack.encode

Wanted = list[tuple[str, Route, int]]


class RedisConsumer:
    """A `Consumer` of `RedisQueue.consumer`."""

    def __init__(
        self,
        core: Core,
        notifier: RedisNotifier,
        info: WorkerInfo,
        limits: ClaimLimits,
        lease: Lease,
        forget: Callable[["RedisConsumer"], None],
    ) -> None:
        self._core = core
        self._info = info
        self._limits = (limits.fetch_bytes, limits.suspect_after, limits.mailbox_batch)
        self._lease = lease
        self._name = owner_name(info.id)
        self._forget = forget
        self._notifier = notifier
        self._changed = asyncio.Event()
        self.waiter_id = notifier.register(self._name, self)
        """The id by which scripts notify this consumer or hand over a delivery to it."""

        self._waiting: dict[str, tuple[str, Route]] = {}
        """The subscriptions, by sid, for which this consumer is registered as waiting, each with its wanted name."""

        self._due_at: float | None = None
        self._woken = False
        self._starts_handlers = False
        """Whether the handlers of the last call's claims start before the next request."""

        self._closed = False
        self._audit = Audit()
        self._reconciler = ClaimReconciler(core, info, self._name, lease.interrupted, self._lose)

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
        wanted = {name: limit for name, limit in wants.items() if limit > 0}
        self._changed.clear()
        if self._starts_handlers:
            await asyncio.sleep(0)
        if not (claims := self._take_handed_over(wanted)):
            claims = await self._claim(wanted, waits=wait > 0 and not self._woken)
        if not claims and wait > 0 and not self._woken:
            claims = await self._wait(wanted, self._core.clock.monotonic() + wait)
        self._woken = False
        self._starts_handlers = 0 < len(claims) <= FEW
        # If closed or lost meanwhile: `close` releases these claims, or another worker takes them over.
        self._check()
        return claims

    def wake(self) -> None:
        self._woken = True
        self._changed.set()

    def notified(self, handed_over: bytes) -> None:
        """Wake up; add the delivery that was handed over, if there is one."""
        if handed_over:
            wait, sid, message = handed_over.split(b" ", 2)
            name, route = self._waiting.get(sid.decode(), (None, None))
            if self._closed or not self._reconciler.requests.handed_over(int(wait)):
                return
            if name is None or route is None:
                self._reconciler.may_own_unknown = True
            else:
                self._reconciler.found += self._claims_of(name, route, ([message], ()))
        self._changed.set()

    def interrupted(self) -> None:
        """Note that the server was unreachable: deliveries may have been handed over, or claims lost."""
        self._reconciler.may_own_unknown = self._reconciler.may_have_lost_claims = True
        self._lease.interrupted()
        self._changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        self._core.owner.check()
        if not settlements:
            return []
        fenced: list[Settlement] = []
        link, known = self._core.link("settle"), self._reconciler.known
        for step in in_steps(settlements):
            batch = SettlementBatch(step, self._core.keys)
            arguments = (self._core.now(), self._name, batch.packed())
            known.settling(step)
            try:
                found = await self._reconciler.watch(link.run_repeatable(scripts().settle, batch.keys(), *arguments))
            except BaseException:
                known.unsettled(step)
                raise
            known.settled(step)
            fenced += [step[index] for index in sorted(found)]
        return fenced

    async def isolate(self, claim: Claim) -> bool:
        delivery_id = str(claim.deliveries[0].id)
        group = self._core.keys.group(delivery_id[32:40])
        name = (claim.ordering_key or "") if claim.ordered else delivery_id[:31]
        link = self._core.link("settle")
        arguments = (self._name, int(claim.ordered), name, claim.fence)
        return bool(await self._reconciler.watch(link.run_repeatable(scripts().isolate, group, *arguments)))

    async def recover(self) -> int:
        self._check()
        if self._reconciler.may_have_lost_claims:
            await self._reconciler.check_claims()
        watch, core = self._reconciler.watch, self._core
        count = 0
        while True:
            # A worker that was cut off until recently leaves the others time to reach the server again, too.
            patient = self._lease.held_for >= core.options.patience
            found = await watch(find_dead(core, self._name, patient=patient))
            if isinstance(found, int):
                raise self._lose()
            dead, retiring = found
            if retiring:
                await watch(finish_retiring(core.link("admin"), core.keys, core.now))
            dead = dead or await watch(self._audit.unknown_owners(core))
            if not dead:
                return count
            count += await watch(take_over(core, dead))

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        self._check()
        return await self._reconciler.watch(unpark(self._core, known))

    def renew(self) -> bool:
        return self._lease.renew()

    def abandon(self) -> None:
        self._lease.abandon()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notifier.unregister(self.waiter_id)
        self.wake()
        try:
            if not self.lost:
                await self._release_all()
        except BaseException:
            # The claims were not released, so other workers take them over.
            self._lease.mark_lost()
            raise
        finally:
            if self._reconciler.known.keeps and not self.lost:
                self._lease.keep_alive()
            else:
                self._lease.close()
                self._forget(self)

    def keep(self, claim: Claim) -> None:
        self._reconciler.known.keep(claim)

    async def shut(self) -> None:
        """Abandon the lease, because the queue is closed."""
        lost, self._closed = self.lost, True
        self._lease.mark_lost()
        self.wake()
        if not lost:
            with contextlib.suppress(QueueError):
                await self._core.link("admin").run_repeatable(
                    scripts().abandon, self._keys("leases", WAITING), self._name
                )
        self._lease.close()
        self._forget(self)

    async def _release_all(self) -> None:
        core = self._core
        owns_more, _ = await self._reconciler.stop_claims("admin")
        known = self._reconciler.known
        kept = known.kept()
        routes = (await core.registry.load()).all
        ordered = {it.subscription.sid: it.subscription.ordered for it in routes}
        for sid, names in known.all().items():
            if sid not in ordered:
                continue
            exempt = set(kept.get(sid, ()))
            owned = [it for it in names if it not in exempt]
            for first in range(0, len(owned), PAGE):
                await release_claims(core, sid, self._name, owned[first : first + PAGE], ordered=ordered[sid])
        if owns_more:
            for route in routes:
                await release_all(core, route, [self._name], dies=False, kept=kept.get(route.subscription.sid, ()))
        await unregister(core, [self._name], routes, lease=not known.keeps)

    def _check(self) -> None:
        self._core.owner.check()
        if self._closed or self.lost:
            raise worker_ended(self._info.id, closed=self._closed)

    def _lose(self) -> QueueClosed:
        """Mark the lease as lost; return the error to raise."""
        self._lease.mark_lost()
        self._changed.set()
        return worker_ended(self._info.id, closed=False)

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
            # The last request ends the registration as waiting, so that nothing is handed over after this call.
            claims = await self._claim(wanted, waits=self._may_wait_until(deadline))
        return claims or self._take_handed_over(wanted)

    def _may_wait_until(self, deadline: float) -> bool:
        return not self._woken and deadline > self._core.clock.monotonic()

    def _take_handed_over(self, wanted: Mapping[str, int]) -> list[Claim]:
        if not self._reconciler.found:
            return []
        taken = [it for it in self._reconciler.found if it.subscription in wanted]
        self._reconciler.found = [it for it in self._reconciler.found if it.subscription not in wanted]
        return taken

    async def _claim(self, wanted: Mapping[str, int], *, waits: bool) -> list[Claim]:
        if self._reconciler.may_own_unknown:
            await self._reconciler.find_unknown_claims()
            if claims := self._take_handed_over(wanted):
                return claims
        while True:
            snapshot = self._core.registry.snapshot
            wants: Wanted = []
            for name, limit in wanted.items():
                route = snapshot.by_name.get(name)
                if route is not None and not route.subscription.paused:
                    wants.append((name, route, limit))
            if not wants:
                if await self._core.registry.load(None if wanted else snapshot) is snapshot:
                    return []
                continue
            answer = await self._request_claims(snapshot, wants, waits=waits)
            if answer == OUTDATED:
                await self._core.registry.load(snapshot)
                continue
            claims = self._take(wants, *answer, waits=waits)
            if claims or self._due_at != AT_ONCE:
                return claims

    async def _request_claims(self, snapshot: RegistrySnapshot, wants: Wanted, *, waits: bool) -> Any:  # noqa: ANN401 - the answer of a script
        asked = {route.subscription.sid for _, route, _ in wants}
        no_longer_wanted = [route for sid, (_, route) in self._waiting.items() if sid not in asked]
        most = [(route.subscription.ordered, limit) for _, route, limit in wants]
        most += [(route.subscription.ordered, 0) for route in no_longer_wanted]
        keys = [
            *self._keys("meta", "leases", "plans", "planned", WAITING, "claims"),
            *_groups([it for _, it, _ in wants]),
            *_groups(no_longer_wanted),
        ]
        link = self._core.link("fetch")
        await self._core.measure(link)
        number = self._reconciler.requests.next()
        before = self._waiting
        self._waiting = before | {it.subscription.sid: (name, it) for name, it, _ in wants}
        ids = (self.waiter_id if waits else "", self.waiter_id if before else "")
        arguments = (snapshot.version, self._core.now(), self._name, *ids, pack(most), number, *self._limits)
        try:
            answer = await self._reconciler.watch(link.run_repeatable(scripts().claim, keys, *arguments))
        except BaseException:
            self._reconciler.may_own_unknown = True
            raise
        if answer == LEASE_LOST:
            raise self._lose()
        if answer == VOID:
            self._reconciler.may_own_unknown = True
            raise QueueUnavailable(f"worker {self._info.id}: this claim request arrived after it was made void")
        if answer != OUTDATED and not waits:
            self._waiting = {}
        return answer

    def _take(self, wants: Wanted, due: bytes, answers: Sequence[Any], ended: int, *, waits: bool) -> list[Claim]:
        claims: list[Claim] = []
        for (name, route, _), answer in zip(wants, answers, strict=False):
            claims += self._claims_of(name, route, answer)
        self._reconciler.requests.answered(claimed=bool(claims), waits=waits, ended=bool(ended))
        self._due_at = seconds(due) if due else None
        return claims

    def _claims_of(self, name: str, route: Route, answer: Sequence[Any]) -> list[Claim]:
        subscription = route.subscription
        make = mailbox_claims_of if subscription.ordered else claims_of
        claims = make(answer, name, subscription.sid)
        self._reconciler.known.add(subscription.sid, claims, ordered=subscription.ordered)
        return claims

    def _keys(self, *names: str) -> list[str]:
        return [self._core.keys.of(name) for name in names]


def _groups(routes: Collection[Route]) -> list[str]:
    return [key for route in routes for key in route.keys]
