"""Finds and removes differences between the claims that a consumer knows and those that the server stores."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from infra.mq.drivers.redis.claim_requests import ClaimRequests
from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.keys import WAITING
from infra.mq.drivers.redis.known_claims import KnownClaims
from infra.mq.drivers.redis.registry import Route
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.server import run_id
from infra.mq.drivers.redis.wire import claims_of, mailbox_claims_of
from infra.mq.errors import QueueUnavailable
from infra.mq.types import Claim, WorkerInfo

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

pack = msgspec.msgpack.encode

PAGE = 500
"""Number of claims that one request reads, checks or releases."""

LAST_NUMBER = 9_007_199_254_740_991
"""The largest number of a claim request: with it all requests of a worker are void."""


class ClaimReconciler:
    """Keeps a consumer's known claims equal to those that the server stores for it.

    Args:
        core: The state of the queue.
        info: The identity of the worker.
        name: The worker's name as an owner of claims.
        interrupted: Called when the server is unreachable.
        lose: Marks the lease as lost, and returns the error to raise.
    """

    def __init__(
        self,
        core: Core,
        info: WorkerInfo,
        name: str,
        interrupted: Callable[[], None],
        lose: Callable[[], Exception],
    ) -> None:
        self.known = KnownClaims()
        self.requests = ClaimRequests()
        self.found: list[Claim] = []
        """Claims that were handed over, or found here; the next `fetch` that wants them returns them."""

        self.may_own_unknown = False
        """Whether the server may store claims of this worker that the consumer does not know."""

        self.may_have_lost_claims = False
        """Whether the server may have lost claims that the consumer knows."""

        self._core = core
        self._info = info
        self._name = name
        self._interrupted = interrupted
        self._lose = lose
        self._run_id = core.run_id

    async def find_unknown_claims(self) -> None:
        """Find claims that the consumer does not know, because an answer or a notification was lost.

        All claim requests sent before this call are void: if one arrives later, it claims nothing.

        Raises:
            QueueClosed: the lease is lost.
        """
        self.may_own_unknown = False
        try:
            await self._find_unknown_claims()
        except BaseException:
            self.may_own_unknown = True
            raise

    async def check_claims(self) -> None:
        """Lose the lease if the server has lost a known claim, which other workers may then own.

        Raises:
            QueueClosed: the lease is lost.
        """
        self.may_have_lost_claims = False
        try:
            lost = await self.watch(self._has_lost_claims())
        except BaseException:
            self.may_have_lost_claims = True
            raise
        if lost:
            log.error("claims vanished from the queue", worker=self._info.id)
            raise self._lose()

    async def stop_claims(self, link: str, number: int = LAST_NUMBER) -> tuple[bool, str]:
        """Make claim requests up to `number` void; return whether unknown claims may exist, and the server's run id.

        Raises:
            QueueClosed: the lease is lost.
        """
        server = await run_id(self._core.link(link))
        keys = [self._core.keys.of(it) for it in ("leases", "claims", WAITING)]
        answer = await self._core.link(link).run_repeatable(scripts().stop_claims, keys, self._name, number)
        if isinstance(answer, int):
            raise self._lose()
        # A restarted server may also have lost settlements, so that it stores claims that were settled.
        return server != self._run_id or self.requests.may_own_more(int(answer[0]), answer[1]), server

    async def watch(self, request: Awaitable[T]) -> T:
        """Await a request; call `interrupted` if the server is unreachable."""
        try:
            return await request
        except QueueUnavailable:
            self._interrupted()
            raise

    async def _find_unknown_claims(self) -> None:
        owns_more, server = await self.watch(self.stop_claims("fetch", self.requests.void()))
        await self.check_claims()
        if owns_more:
            for route in self._core.registry.snapshot.all:
                await self._find_unknown_claims_of(route)
        self._run_id = server
        self.requests.found_all()

    async def _find_unknown_claims_of(self, route: Route) -> None:
        sid = route.subscription.sid
        before = self.known.of(sid)
        owned = await self.watch(self._owned_of(route))
        sure = self.known.sure_of(sid)
        names = [it for it in owned if it not in sure]
        name = next((it for it in route.subscription.names if it in self._info.subscriptions), route.subscription.name)
        while names:
            names, answer = await self.watch(self._read_owned(route, names))
            make = mailbox_claims_of if route.subscription.ordered else claims_of
            # A claim that was known before the request may have been settled since, so it is not unknown.
            unknown = [it for it in make(answer, name, sid) if not self.known.knows(sid, it, before)]
            self.known.add(sid, unknown, ordered=route.subscription.ordered)
            self.found += unknown

    async def _has_lost_claims(self) -> bool:
        routes = {it.subscription.sid: it for it in self._core.registry.snapshot.all}
        for sid, claims in list(self.known.sure()):
            if sid not in routes:
                continue
            names = list(claims)
            for first in range(0, len(names), PAGE):
                page = names[first : first + PAGE]
                arguments = (
                    self._name,
                    int(routes[sid].subscription.ordered),
                    pack(page),
                    pack([claims[it] for it in page]),
                )
                missing = await self._core.link("fetch").run_repeatable(
                    scripts().check_owned, routes[sid].keys, *arguments
                )
                # A claim that was settled since the request is missing rightly.
                if missing and not {it.decode() for it in missing}.isdisjoint(self.known.sure_of(sid)):
                    return True
        return False

    async def _owned_of(self, route: Route) -> list[str]:
        """Return the names of all claims of a subscription that the server stores for this worker."""
        found: list[str] = []
        cursor = b"0"
        while True:
            cursor, names = await self._core.link("fetch").run_repeatable(
                scripts().scan_owned, route.keys, self._name, cursor
            )
            found += [it.decode() for it in names]
            if cursor == b"0":
                return [*dict.fromkeys(found)]

    async def _read_owned(self, route: Route, names: list[str]) -> tuple[list[str], Any]:
        """Read the first named claims; return the names left to read, and the claims in the form of `claim.lua`."""
        page, rest = names[:PAGE], names[PAGE:]
        arguments = (self._name, int(route.subscription.ordered), pack(page))
        read, claims = await self._core.link("fetch").run_repeatable(scripts().read_owned, route.keys, *arguments)
        return page[read:] + rest, claims
