"""Whether a consumer and the server agree on what the consumer owns."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.holdings import Holdings
from infra.mq.drivers.redis.registry import Route
from infra.mq.drivers.redis.requests import Requests
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.server import incarnation
from infra.mq.drivers.redis.wire import claims_of, mailbox_claims_of
from infra.mq.errors import QueueUnavailable
from infra.mq.types import Claim, WorkerInfo

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

pack = msgspec.msgpack.encode

PAGE = 500
"""How many claims are asked about at a time."""

EVERY = 9_007_199_254_740_991
"""The number that makes every claim of a worker void."""


class Ownership:
    """What a consumer owns, as far as it knows, and how it finds out where the server knows something else.

    Args:
        core: The queue's.
        info: Who the consumer is.
        name: What it is called on the server.
        interrupted: Called when the server cannot be reached.
        lose: Counts the consumer as lost, and returns the error that says so.
    """

    def __init__(
        self,
        core: Core,
        info: WorkerInfo,
        name: str,
        interrupted: Callable[[], None],
        lose: Callable[[], Exception],
    ) -> None:
        self.holdings = Holdings()
        self.requests = Requests()
        self.found: list[Claim] = []
        """Claims that came without being asked for, or were found; the next fetch returns them."""

        self.in_doubt = False
        """Whether something may have been claimed that the consumer does not know of."""

        self.unsure = False
        """Whether the server may have forgotten what the consumer owns."""

        self._core = core
        self._info = info
        self._name = name
        self._interrupted = interrupted
        self._lose = lose
        self._server = core.incarnation

    async def find_unheard(self) -> None:
        """Find what is owned but was never heard of, because an answer or a notification was lost.

        No claim that was asked for until now claims anything from here on, however late it comes.

        Raises:
            QueueClosed: the consumer is lost.
        """
        self.in_doubt = False
        try:
            await self._find_unheard()
        except BaseException:
            self.in_doubt = True
            raise

    async def check_claims(self) -> None:
        """Count the consumer as lost if the server has forgotten what it owns: then other workers may own it.

        Raises:
            QueueClosed: it is lost.
        """
        self.unsure = False
        try:
            lost = await self.hear(self._has_lost_claims())
        except BaseException:
            self.unsure = True
            raise
        if lost:
            log.error("claims vanished from the queue", worker=self._info.id)
            raise self._lose()

    async def stop_claims(self, link: str, number: int = EVERY) -> tuple[bool, str]:
        """Make claims up to a number void; return whether more may be owned than is known here, and which server it is.

        Raises:
            QueueClosed: the consumer is lost.
        """
        server = await incarnation(self._core.link(link))
        keys = [self._core.keys.of(it) for it in ("leases", "claims", "sleepers")]
        answer = await self._core.link(link).safely(scripts().stop_claims, keys, self._name, number)
        if isinstance(answer, int):
            raise self._lose()
        # A server that was started anew may also have forgotten that something ended.
        return server != self._server or self.requests.may_own_more(int(answer[0]), answer[1]), server

    async def hear(self, asked: Awaitable[T]) -> T:
        """Return the answer, and notice when the server cannot be reached."""
        try:
            return await asked
        except QueueUnavailable:
            self._interrupted()
            raise

    async def _find_unheard(self) -> None:
        owns_more, server = await self.hear(self.stop_claims("fetch", self.requests.void()))
        await self.check_claims()
        if owns_more:
            for route in self._core.catalog.snapshot.all:
                await self._find_unheard_of(route)
        self._server = server
        self.requests.found_all()

    async def _find_unheard_of(self, route: Route) -> None:
        sid = route.kept.sid
        before = self.holdings.of(sid)
        owned = await self.hear(self._owned_of(route))
        sure = self.holdings.sure_of(sid)
        names = [it for it in owned if it not in sure]
        name = next((it for it in route.kept.names if it in self._info.subscriptions), route.kept.name)
        while names:
            names, answer = await self.hear(self._read_owned(route, names))
            make = mailbox_claims_of if route.kept.ordered else claims_of
            # One that was known when this began may have ended meanwhile.
            unheard = [it for it in make(answer, name, sid) if not self.holdings.knows(sid, it, before)]
            self.holdings.add(sid, unheard, ordered=route.kept.ordered)
            self.found += unheard

    async def _has_lost_claims(self) -> bool:
        routes = {it.kept.sid: it for it in self._core.catalog.snapshot.all}
        for sid, claims in list(self.holdings.sure()):
            if sid not in routes:
                continue
            names = list(claims)
            for first in range(0, len(names), PAGE):
                page = names[first : first + PAGE]
                arguments = (self._name, int(routes[sid].kept.ordered), pack(page), pack([claims[it] for it in page]))
                missing = await self._core.link("fetch").safely(scripts().check_owned, routes[sid].keys, *arguments)
                # One that was settled meanwhile is gone as it should be.
                if missing and not {it.decode() for it in missing}.isdisjoint(self.holdings.sure_of(sid)):
                    return True
        return False

    async def _owned_of(self, route: Route) -> list[str]:
        """Return the names of all that the consumer owns of a subscription."""
        found: list[str] = []
        cursor = b"0"
        while True:
            cursor, names = await self._core.link("fetch").safely(scripts().scan_owned, route.keys, self._name, cursor)
            found += [it.decode() for it in names]
            if cursor == b"0":
                return [*dict.fromkeys(found)]

    async def _read_owned(self, route: Route, names: list[str]) -> tuple[list[str], Any]:
        """Return the names that are still to be read, and the claims of those before them as `claim.lua` has them."""
        page, rest = names[:PAGE], names[PAGE:]
        arguments = (self._name, int(route.kept.ordered), pack(page))
        read, claims = await self._core.link("fetch").safely(scripts().read_owned, route.keys, *arguments)
        return page[read:] + rest, claims
