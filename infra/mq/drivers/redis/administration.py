"""What operators do to subscriptions."""

import secrets
from typing import Any, Literal

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import Content, Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.errors import ListenerInUse, MailboxNotBlocked

Backlog = Literal["refuse", "discard", "dead"]


async def unblock(core: Core, name: str, ordering_key: str, *, skip: bool) -> None:
    """As `MessageQueue.unblock`."""
    snapshot = await core.catalog.load()
    while True:
        route = snapshot.get(name)
        if not route.kept.ordered:
            raise MailboxNotBlocked(f"{name} is not ordered: it has no blocked keys")
        keys = [*(core.keys.of(it) for it in ("meta", "dead", "deads")), *route.keys]
        arguments = (snapshot.version, core.now(), route.kept.sid, ordering_key, int(skip))
        answer = await core.link("admin").safely(scripts().unblock, keys, *arguments)
        if answer == 0:
            raise MailboxNotBlocked(f"{name}: the key {ordering_key!r} is not blocked")
        if answer != OUTDATED:
            return
        snapshot = await core.catalog.load(snapshot)


async def retire(core: Core, name: str, event: str | None, backlog: Backlog) -> int:
    """As `MessageQueue.retire`."""
    finished = await finish_retiring(core)
    snapshot = await core.catalog.load()
    if name not in snapshot.by_name and name in finished and event is None:
        return finished[name]
    while True:
        route = snapshot.get(name, event)
        going = Going.of(route, event, backlog)
        if event is not None and backlog == "refuse" and (waiting := await _count(core, going)):
            raise ListenerInUse(f"{name} still has {waiting} deliveries: discard them, or wait")
        answer = await _begin(core, snapshot, route, going)
        if answer != OUTDATED:
            break
        snapshot = await core.catalog.load(snapshot)
    if isinstance(answer, list):
        reason, detail = (it.decode().rstrip(".") for it in answer)
        if reason == "worker":
            raise ListenerInUse(f"{name} is in use by worker {detail}: stop that worker first")
        raise ListenerInUse(f"{name} still has {detail} deliveries: discard them, or wait")
    if event is None:
        core.catalog.forget(route.kept.names)
    else:
        core.catalog.forget_event(route.kept.names, event)
    await core.catalog.load()
    return await _finish(core, going)


async def finish_retiring(core: Core) -> dict[str, int]:
    """Finish what others began to retire and did not finish; return how many deliveries that were, by name."""
    counts: dict[str, int] = {}
    for note in await core.link("admin").ask("HVALS", core.keys.of("retiring")):
        going = msgspec.msgpack.decode(note, type=Going)
        counts[going.name] = counts.get(going.name, 0) + await _finish(core, going)
    return counts


class Going(msgspec.Struct, frozen=True):
    """A subscription, or an event of it, that is being retired: the note by which anybody can go on with that."""

    sid: str
    name: str
    ordered: bool
    event: str
    """Empty for all of it."""

    events: list[str]
    backlog: str

    @classmethod
    def of(cls, route: Route, event: str | None, backlog: Backlog) -> "Going":
        """Return what is to be noted."""
        kept = route.kept
        return cls(kept.sid, kept.name, kept.ordered, event or "", kept.events, backlog)


async def _begin(core: Core, snapshot: Snapshot, route: Route, going: Going) -> Any:  # noqa: ANN401 - of the script
    keys = [core.keys.of(it) for it in ("meta", "leases", "workers", "retiring")]
    arguments = (
        snapshot.version,
        secrets.token_hex(8),
        msgspec.msgpack.encode(_without(snapshot.content, route, going.event)),
        core.now(),
        going.sid,
        int(going.ordered),
        going.event,
        going.backlog,
        msgspec.msgpack.encode(route.kept.names),
        core.keys.changes,
        msgspec.msgpack.encode(going),
    )
    keys += [*route.keys, core.keys.old_line(going.sid)]
    return await core.link("admin").safely(scripts().retire, keys, *arguments)


async def _finish(core: Core, going: Going) -> int:
    # A refusal counted first; what came between that and the end of the subscription is still handed out.
    return await _steps(core, going, b"end" if going.event and going.backlog == "refuse" else b"plan")


async def _count(core: Core, going: Going) -> int:
    return await _steps(core, going, b"count", b"l0")


async def _steps(core: Core, going: Going, phase: bytes, cursor: bytes = b"0") -> int:
    names = ("meta", "dead", "deads", "plans", "planned", "retiring")
    sid = going.sid
    keys = [*(core.keys.of(it) for it in names), *core.keys.group(sid)]
    keys += [core.keys.old_line(sid), core.keys.parking_index(sid)]
    keys += [core.keys.parking(sid, it) for it in going.events]
    what = (sid, int(going.ordered), going.event, int(going.backlog == "dead"))
    total = 0
    while phase:
        answer = await core.link("admin").safely(scripts().retire_step, keys, core.now(), *what, phase, cursor)
        phase, cursor, count = answer
        total += count
    return total


def _without(content: Content, route: Route, event: str) -> Content:
    changed = content.copy()
    sid = route.kept.sid
    if not event:
        changed.subscriptions = [it for it in changed.subscriptions if it.sid != sid]
        changed.retired[sid] = route.kept.name
    else:
        for kept in changed.subscriptions:
            if kept.sid == sid:
                kept.events.remove(event)
        changed.retired_events.setdefault(sid, []).append(event)
    return changed
