"""Taking over what dead workers own, and what was parked for a worker that knows more."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import microseconds

pack = msgspec.msgpack.encode

DEAD_AT_ONCE = 50
"""How many dead workers `find_dead.lua` names at most."""

AUDITED = 100
"""How many subscriptions `audit.lua` is given at most."""

WORKER_KEYS = ("leases", "workers", "sleepers", "claims", "since")
"""Where workers are kept, in the order of `forget_workers.lua`."""


async def find_dead(core: Core, worker: str, *, patient: bool) -> tuple[list[str], bool] | int:
    """Return the next dead workers, of which nothing more can be claimed, and whether a subscription is being retired.

    A number says that this worker is dead itself. Without `patient` only workers that gave their lease up are dead.
    """
    options = core.options
    keys = [core.keys.of(it) for it in ("meta", "leases", "sleepers", "since", "retiring")]
    margin = microseconds(options.margin) if patient else ""
    arguments = (core.now(), worker, microseconds(options.lease), margin, microseconds(options.patience))
    answer = await core.link("admin").safely(scripts().find_dead, keys, *arguments)
    if isinstance(answer, int):
        return answer
    return [it.decode() for it in answer[0]], bool(answer[1])


class Audit:
    """Finds claims whose worker is not registered, as after the server lost the end of its log; a page at a time."""

    def __init__(self) -> None:
        self._next = 0
        self._cursor = b"0"

    async def unknown_owners(self, core: Core) -> list[str]:
        """Return the owners on the next page of what is claimed that are no registered workers."""
        routes = core.catalog.snapshot.all
        if self._next >= len(routes):
            self._next, self._cursor = 0, b"0"
        page = routes[self._next : self._next + AUDITED]
        if not page:
            return []
        keys = [core.keys.of("leases"), *(it.own for it in page)]
        done, self._cursor, unknown = await core.link("admin").safely(scripts().audit, keys, self._cursor)
        self._next += done
        return [it.decode() for it in unknown]


async def take_over(core: Core, dead: Sequence[str]) -> int:
    """Take everything from dead workers, charging each delivery with its worker's death; return how many those were."""
    # Whatever they own is of a subscription that was kept before they died.
    snapshot = await core.catalog.load()
    count = 0
    for route in snapshot.all:
        count += await take_all(core, route, dead, dies=True)
    await forget(core, dead, snapshot.all, lease=True)
    return count


async def take_all(core: Core, route: Route, workers: Sequence[str], *, dies: bool, kept: Sequence[str] = ()) -> int:
    """Take all that these workers own of a subscription, but for what they keep."""
    count, cursor = 0, b"0"
    while True:
        of = route.kept
        cursor, taken = await _take(core, of.sid, workers, "", cursor, kept, ordered=of.ordered, dies=dies)
        count += taken
        if cursor == b"0":
            return count


async def give_back(core: Core, sid: str, worker: str, ids: Sequence[str], *, ordered: bool) -> None:
    """Give back, uncharged, those of the named claims that this worker owns."""
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
    cursor, count = await core.link("admin").safely(scripts().take, keys, *arguments)
    return cursor, count


async def forget(core: Core, workers: Sequence[str], routes: Collection[Route], *, lease: bool) -> None:
    """Forget workers, and without `lease` leave them theirs."""
    keys = [*(core.keys.of(it) for it in WORKER_KEYS), *(route.idle for route in routes)]
    await core.link("admin").safely(scripts().forget_workers, keys, int(lease), *workers)


async def unpark(core: Core, known: Mapping[str, Collection[str]]) -> int:
    """As `Consumer.unpark`."""
    total = 0
    while True:
        snapshot = core.catalog.snapshot
        answer = await _unpark_some(core, snapshot, known)
        if answer == OUTDATED:
            await core.catalog.load(snapshot)
            continue
        total += int(answer[0])
        if not answer[1]:
            return total


async def _unpark_some(core: Core, snapshot: Snapshot, known: Mapping[str, Collection[str]]) -> Any:  # noqa: ANN401 - of the script
    keys, link = core.keys, core.link("admin")
    places = {
        name: [keys.parking(route.kept.sid, need) for need in needs]
        for name, needs in known.items()
        if (route := snapshot.by_name.get(name)) is not None and needs
    }
    # Mostly nothing is parked: one look for all, and an old copy of the registry is found out by others.
    asked = [place for each in places.values() for place in each]
    if not asked or (snapshot.version and not await link.ask("EXISTS", *asked)):
        return (0, 0)
    routes = [snapshot.by_name[name] for name in places]
    names = [keys.of("meta"), *(key for route in routes for key in route.keys)]
    for route, each in zip(routes, places.values(), strict=True):
        names += [keys.parking_index(route.kept.sid), *each]
    wanted = [(route.kept.ordered, len(each)) for route, each in zip(routes, places.values(), strict=True)]
    arguments = (snapshot.version, core.now(), pack(wanted))
    return await link.safely(scripts().unpark, names, *arguments)
