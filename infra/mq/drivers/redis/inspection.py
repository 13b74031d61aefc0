"""Statistics of subscriptions."""

from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import GROUP
from infra.mq.drivers.redis.registry import RegistrySnapshot, Route
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.types import SubscriptionStats

AT_ONCE = 20
"""Number of subscriptions that one request counts."""

WORKERS = 100
"""Number of workers that one request reads; each stores the names of all its listeners."""


async def stats(core: Core) -> list[SubscriptionStats]:
    """Implement `MessageQueue.stats`. With more than some hundred deliveries `oldest` is an estimate.

    It is then the oldest of the first deliveries that are due, claimed, parked, blocked or waiting for their time.
    """
    while True:
        snapshot = await core.registry.load()
        workers_listeners = await _live_listeners(core)
        found: list[SubscriptionStats] = []
        while len(found) < len(snapshot.all):
            routes = snapshot.all[len(found) : len(found) + AT_ONCE]
            answer = await _count_some(core, snapshot, routes)
            if answer == OUTDATED:
                break
            # Where messages are large, the script answers for the first subscriptions only.
            for route, numbers in zip(routes, answer, strict=False):
                workers = sum(not listeners.isdisjoint(route.subscription.names) for listeners in workers_listeners)
                found.append(_stats_of(route, await _complete(core, route, numbers), workers))
        else:
            return sorted(found, key=lambda it: it.name)


async def _count_some(core: Core, snapshot: RegistrySnapshot, routes: Sequence[Route]) -> Any:  # noqa: ANN401 - the answer of a script
    keys = [core.keys.of("meta")]
    for route in routes:
        keys += route.keys
    for route in routes:
        sid = route.subscription.sid
        keys += [core.keys.parking_index(sid), *(core.keys.parking(sid, event) for event in route.subscription.events)]
    wanted = [
        (it.subscription.sid, it.subscription.ordered, len(it.subscription.events), snapshot.formerly(it))
        for it in routes
    ]
    arguments = (snapshot.version, core.now(), msgspec.msgpack.encode(wanted))
    return await core.link("admin").run_repeatable(scripts().stats, keys, *arguments)


async def _live_listeners(core: Core) -> list[set[str]]:
    """Return the names of the listeners of each live worker."""
    keys = [core.keys.of(name) for name in ("meta", "leases", "workers")]
    workers_listeners: list[set[str]] = []
    at, count = 0, WORKERS
    while count == WORKERS:
        count, workers = await core.link("admin").run_repeatable(scripts().live_workers, keys, core.now(), at, WORKERS)
        workers_listeners += [set(msgspec.msgpack.decode(it)[0]) for it in workers if it]
        at += count
    return workers_listeners


async def _complete(core: Core, route: Route, numbers: list[Any]) -> list[Any]:
    """Count in steps what is too large for one script: claimed, blocked and parked mailboxes, and blocked keys."""
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
            cursor, page = await core.link("admin").query("HSCAN", group["block"], cursor, "COUNT", 200)
            found |= dict(zip(page[::2], page[1::2], strict=True))
            if cursor == b"0":
                break
        errors = [it for pair in found.items() for it in pair]
    return [counts, oldest, errors, dead]


async def _sum(core: Core, route: Route, command: str, key: str | bytes, *, claimed: bool) -> int:
    total, cursor, keys = 0, b"0", [*route.keys, key if isinstance(key, str) else key.decode()]
    while True:
        cursor, more = await core.link("admin").run_repeatable(scripts().sum_boxes, keys, command, int(claimed), cursor)
        total += int(more)
        if cursor == b"0":
            return total


def _stats_of(route: Route, numbers: list[Any], workers: int) -> SubscriptionStats:
    (unfinished, retrying, scheduled, in_flight, parked, blocked), oldest, errors, dead = numbers
    texts = [it.decode() for it in errors]
    subscription = route.subscription
    return SubscriptionStats(
        name=subscription.name,
        events=frozenset(subscription.events),
        ordered=subscription.ordered,
        paused=subscription.paused,
        workers=workers,
        # Deliveries may have changed their state between the steps, so the difference may be negative.
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
