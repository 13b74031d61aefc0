"""Whether a consumer and the server agree on what the consumer owns."""

from typing import Any

import msgspec

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.holdings import Holdings
from infra.mq.drivers.redis.registry import Route
from infra.mq.drivers.redis.scripts import scripts

pack = msgspec.msgpack.encode

PAGE = 500
"""How many claims are asked about at a time."""

EVERY = 9_007_199_254_740_991
"""The number that makes every claim of a worker void."""


async def stop_claims(core: Core, link: str, worker: str, number: int) -> tuple[int, bytes] | int:
    """Make claims up to a number void, and end the sleep that something may be handed over to.

    Returns:
        The number of the last claim that claimed something, and of the sleep that was ended, if there was one. A number
        alone says that the worker is dead.
    """
    keys = [core.keys.of(it) for it in ("leases", "claims", "sleepers")]
    answer = await core.link(link).safely(scripts().stop_claims, keys, worker, number)
    return answer if isinstance(answer, int) else (int(answer[0]), answer[1])


async def has_lost_claims(core: Core, worker: str, holdings: Holdings) -> bool:
    """Return whether the server has forgotten claims that are held here, as after a flush."""
    routes = {it.kept.sid: it for it in core.catalog.snapshot.all}
    for sid, claims in list(holdings.sure()):
        if sid not in routes:
            continue
        names = list(claims)
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            arguments = (worker, int(routes[sid].kept.ordered), pack(page), pack([claims[it] for it in page]))
            missing = await core.link("fetch").safely(scripts().check_owned, routes[sid].keys, *arguments)
            # One that was settled meanwhile is gone as it should be.
            if missing and not {it.decode() for it in missing}.isdisjoint(holdings.sure_of(sid)):
                return True
    return False


async def owned_of(core: Core, route: Route, worker: str) -> list[str]:
    """Return the names of all that a worker owns of a subscription."""
    found: list[str] = []
    cursor = b"0"
    while True:
        cursor, names = await core.link("fetch").safely(scripts().scan_owned, route.keys, worker, cursor)
        found += [it.decode() for it in names]
        if cursor == b"0":
            return [*dict.fromkeys(found)]


async def read_owned(core: Core, route: Route, worker: str, names: list[str]) -> tuple[list[str], Any]:
    """Return the names that are still to be read, and the claims of those before them, as `claim.lua` tells them."""
    page, rest = names[:PAGE], names[PAGE:]
    arguments = (worker, int(route.kept.ordered), pack(page))
    read, claims = await core.link("fetch").safely(scripts().read_owned, route.keys, *arguments)
    return page[read:] + rest, claims
