"""What the queue holds, in numbers."""

from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.types import SubscriptionStats


async def stats(core: Core) -> list[SubscriptionStats]:
    """As `MessageQueue.stats`; beyond some hundred deliveries `oldest` is found among the first of each kind."""
    snapshot = await core.catalog.load()
    while True:
        answer = await _ask(core, snapshot)
        if answer != OUTDATED:
            break
        snapshot = await core.catalog.load(snapshot)
    counted, workers = answer
    teams = [set(msgspec.msgpack.decode(it)[0]) for it in workers if it]
    found = [
        _stats_of(route, numbers, sum(not team.isdisjoint(route.kept.names) for team in teams))
        for route, numbers in zip(snapshot.all, counted, strict=True)
    ]
    return sorted(found, key=lambda it: it.name)


async def _ask(core: Core, snapshot: Snapshot) -> Any:  # noqa: ANN401 - what the script answers
    keys = [core.keys.of(name) for name in ("meta", "leases", "workers")]
    for route in snapshot.all:
        keys += route.keys
    for route in snapshot.all:
        keys += [core.keys.parking(route.kept.sid, event) for event in route.kept.events]
    wanted = [(it.kept.sid, it.kept.ordered, len(it.kept.events)) for it in snapshot.all]
    arguments = (snapshot.version, core.now(), msgspec.msgpack.encode(wanted))
    return await core.link("admin").safely(scripts().stats, keys, *arguments)


def _stats_of(route: Route, numbers: list[Any], workers: int) -> SubscriptionStats:
    (ready, retrying, scheduled, in_flight, parked, blocked), oldest, errors, dead = numbers
    texts = [it.decode() for it in errors]
    kept = route.kept
    return SubscriptionStats(
        name=kept.name,
        events=frozenset(kept.events),
        ordered=kept.ordered,
        paused=kept.paused,
        workers=workers,
        ready=ready,
        retrying=retrying,
        scheduled=scheduled,
        in_flight=in_flight,
        parked=parked,
        blocked=blocked,
        dead=int(dead),
        oldest=float(oldest) if oldest else None,
        blocked_keys=dict(zip(texts[::2], texts[1::2], strict=True)),
    )
