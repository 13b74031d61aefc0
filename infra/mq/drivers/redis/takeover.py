"""Takeover of dead workers' claims, release of claims, and unparking."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import WAITING
from infra.mq.drivers.redis.registry import RegistrySnapshot, Route
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import microseconds

pack = msgspec.msgpack.encode

AUDITED = 100
"""The largest number of subscriptions per request of `audit.lua`."""

WORKER_KEYS = ("leases", "workers", WAITING, "claims", "since")
"""The keys that store workers, in the order of `forget_workers.lua`."""


async def find_dead(core: Core, worker: str, *, patient: bool) -> tuple[list[str], bool] | int:
    """Return dead workers, which can claim nothing any more, and whether a retirement is in progress.

    A number instead of both means that this worker's own lease is lost. Without `patient` only workers that abandoned
    their lease count as dead.
    """
    options = core.options
    keys = [core.keys.of(it) for it in ("meta", "leases", WAITING, "since", "retiring")]
    margin = microseconds(options.margin) if patient else ""
    times = (microseconds(options.lease), margin, microseconds(options.patience), microseconds(options.renewed_within))
    arguments = (core.now(), worker, *times)
    answer = await core.link("admin").run_repeatable(scripts().find_dead, keys, *arguments)
    if isinstance(answer, int):
        return answer
    return [it.decode() for it in answer[0]], bool(answer[1])


class Audit:
    """A search, page by page, for claims of unregistered workers, as after the server lost the end of its log."""

    def __init__(self) -> None:
        self._next = 0
        self._cursor = b"0"

    async def unknown_owners(self, core: Core) -> list[str]:
        """Return the unregistered owners of the next page of claims."""
        routes = core.registry.snapshot.all
        if self._next >= len(routes):
            self._next, self._cursor = 0, b"0"
        page = routes[self._next : self._next + AUDITED]
        if not page:
            return []
        keys = [core.keys.of("leases"), *(it.own for it in page)]
        done, self._cursor, unknown = await core.link("admin").run_repeatable(scripts().audit, keys, self._cursor)
        self._next += done
        return [it.decode() for it in unknown]


async def take_over(core: Core, dead: Sequence[str]) -> int:
    """Take over all claims of dead workers, and count the death for each delivery; return the number of deliveries."""
    # Loaded after the deaths, so that it has every subscription of which they own claims.
    snapshot = await core.registry.load()
    count = 0
    for route in snapshot.all:
        count += await release_all(core, route, dead, dies=True)
    await unregister(core, dead, snapshot.all, lease=True)
    return count


async def release_all(core: Core, route: Route, workers: Sequence[str], *, dies: bool, kept: Sequence[str] = ()) -> int:
    """Release all claims of a subscription that these workers own, except `kept`; return the number of deliveries.

    With `dies` each delivery counts the death of its worker.
    """
    count, cursor = 0, b"0"
    while True:
        subscription = route.subscription
        cursor, taken = await _take(
            core, subscription.sid, workers, "", cursor, kept, ordered=subscription.ordered, dies=dies
        )
        count += taken
        if cursor == b"0":
            return count


async def release_claims(core: Core, sid: str, worker: str, ids: Sequence[str], *, ordered: bool) -> None:
    """Release those of the named claims that this worker owns, unchanged."""
    await _take(core, sid, [worker], pack(ids), b"0", (), ordered=ordered, dies=False)


async def _take(
    core: Core,
    sid: str,
    workers: Sequence[str],
    ids: str | bytes,
    cursor: bytes,
    kept: Sequence[str],
    *,
    ordered: bool,
    dies: bool,
) -> tuple[bytes, int]:
    keys = [core.keys.of("meta"), *core.keys.group(sid)]
    how = "dead" if dies else "leaving"
    arguments = (core.now(), int(ordered), how, pack(workers), ids, cursor, pack(kept))
    cursor, count = await core.link("admin").run_repeatable(scripts().take, keys, *arguments)
    return cursor, count


async def unregister(core: Core, workers: Sequence[str], routes: Collection[Route], *, lease: bool) -> None:
    """Delete workers from the server; without `lease` their leases stay."""
    keys = [*(core.keys.of(it) for it in WORKER_KEYS), *(route.idle for route in routes)]
    await core.link("admin").run_repeatable(scripts().forget_workers, keys, int(lease), *workers)


async def unpark(core: Core, known: Mapping[str, Collection[str]]) -> int:
    """Implement `Consumer.unpark`."""
    total = 0
    while True:
        snapshot = core.registry.snapshot
        answer = await _unpark_some(core, snapshot, known)
        if answer == OUTDATED:
            await core.registry.load(snapshot)
            continue
        total += int(answer[0])
        if not answer[1]:
            return total


async def _unpark_some(core: Core, snapshot: RegistrySnapshot, known: Mapping[str, Collection[str]]) -> Any:  # noqa: ANN401 - the answer of a script
    keys, link = core.keys, core.link("admin")
    places = {
        name: [keys.parking(route.subscription.sid, need) for need in needs]
        for name, needs in known.items()
        if (route := snapshot.by_name.get(name)) is not None and needs
    }
    # Mostly nothing is parked, so one EXISTS checks all places. Other calls notice an outdated copy of the registry.
    asked = [place for each in places.values() for place in each]
    if not asked or (snapshot.version and not await link.query("EXISTS", *asked)):
        return (0, 0)
    routes = [snapshot.by_name[name] for name in places]
    names = [keys.of("meta"), *(key for route in routes for key in route.keys)]
    for route, each in zip(routes, places.values(), strict=True):
        names += [keys.parking_index(route.subscription.sid), *each]
    wanted = [(route.subscription.ordered, len(each)) for route, each in zip(routes, places.values(), strict=True)]
    arguments = (snapshot.version, core.now(), pack(wanted))
    return await link.run_repeatable(scripts().unpark, names, *arguments)
