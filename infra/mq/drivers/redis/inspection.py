"""What the queue holds, in numbers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import GROUP
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.types import SubscriptionStats

AT_ONCE = 20
"""How many subscriptions are counted at a time."""

WORKERS = 100
"""How many workers are asked about at a time: each has the names of all its listeners."""


async def stats(core: Core) -> list[SubscriptionStats]:
    """As `MessageQueue.stats`; beyond some hundred deliveries `oldest` is found among the first of each kind."""
    while True:
        snapshot = await core.catalog.load()
        teams = await _teams(core)
        found: list[SubscriptionStats] = []
        while len(found) < len(snapshot.all):
            routes = snapshot.all[len(found) : len(found) + AT_ONCE]
            answer = await _ask(core, snapshot, routes)
            if answer == OUTDATED:
                break
            # Where messages are large, it answers of some subscriptions alone.
            for route, numbers in zip(routes, answer, strict=False):
                workers = sum(not team.isdisjoint(route.kept.names) for team in teams)
                found.append(_stats_of(route, await _complete(core, route, numbers), workers))
        else:
            return sorted(found, key=lambda it: it.name)


async def _ask(core: Core, snapshot: Snapshot, routes: Sequence[Route]) -> Any:  # noqa: ANN401 - of the script
    keys = [core.keys.of("meta")]
    for route in routes:
        keys += route.keys
    for route in routes:
        sid = route.kept.sid
        keys += [core.keys.parking_index(sid), *(core.keys.parking(sid, event) for event in route.kept.events)]
    wanted = [(it.kept.sid, it.kept.ordered, len(it.kept.events), snapshot.formerly(it)) for it in routes]
    arguments = (snapshot.version, core.now(), msgspec.msgpack.encode(wanted))
    return await core.link("admin").safely(scripts().stats, keys, *arguments)


async def _teams(core: Core) -> list[set[str]]:
    """Return for each live worker the names of its listeners."""
    keys = [core.keys.of(name) for name in ("meta", "leases", "workers")]
    teams: list[set[str]] = []
    at, count = 0, WORKERS
    while count == WORKERS:
        count, workers = await core.link("admin").safely(scripts().live_workers, keys, core.now(), at, WORKERS)
        teams += [set(msgspec.msgpack.decode(it)[0]) for it in workers if it]
        at += count
    return teams


async def _complete(core: Core, route: Route, numbers: list[Any]) -> list[Any]:
    """Add up in steps what was too much for one: mailboxes that are claimed, blocked or parked, and blocked keys."""
    counts, oldest, errors, dead, places = numbers
    group = dict(zip(GROUP, route.keys, strict=True))
    if counts[3] < 0:
        counts[3] = await _sum(core, route, "HSCAN", group["own"], claimed=True)
        counts[4] = sum([await _sum(core, route, "SSCAN", it, claimed=False) for it in places])
        counts[5] = await _sum(core, route, "HSCAN", group["block"], claimed=False)
    if errors is None:
        found: dict[bytes, bytes] = {}
        cursor = b"0"
        while True:
            cursor, page = await core.link("admin").ask("HSCAN", group["block"], cursor, "COUNT", 200)
            found |= dict(zip(page[::2], page[1::2], strict=True))
            if cursor == b"0":
                break
        errors = [it for pair in found.items() for it in pair]
    return [counts, oldest, errors, dead]


async def _sum(core: Core, route: Route, command: str, key: str | bytes, *, claimed: bool) -> int:
    total, cursor, keys = 0, b"0", [*route.keys, key if isinstance(key, str) else key.decode()]
    while True:
        cursor, more = await core.link("admin").safely(scripts().sum_boxes, keys, command, int(claimed), cursor)
        total += int(more)
        if cursor == b"0":
            return total


def _stats_of(route: Route, numbers: list[Any], workers: int) -> SubscriptionStats:
    (unfinished, retrying, scheduled, in_flight, parked, blocked), oldest, errors, dead = numbers
    texts = [it.decode() for it in errors]
    kept = route.kept
    return SubscriptionStats(
        name=kept.name,
        events=frozenset(kept.events),
        ordered=kept.ordered,
        paused=kept.paused,
        workers=workers,
        # Where it was added up in steps, deliveries may have moved between them.
        ready=max(0, unfinished - retrying - scheduled - in_flight - parked - blocked),
        retrying=retrying,
        scheduled=scheduled,
        in_flight=in_flight,
        parked=parked,
        blocked=blocked,
        dead=int(dead),
        oldest=float(oldest) if oldest else None,
        blocked_keys=dict(zip(texts[::2], texts[1::2], strict=True)),
    )
