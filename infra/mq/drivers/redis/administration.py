"""What operators do to subscriptions."""

import secrets
from typing import Any, Literal

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import Content, Route, Snapshot
from infra.mq.drivers.redis.retiring import RETIRING, Going, count, finish, finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.refusals import has_backlog, in_use, not_blocked, not_ordered

FENCE = 5
"""Where a packed mailbox has the fence of its last claim."""

Backlog = Literal["refuse", "discard", "dead"]


async def unblock(core: Core, name: str, ordering_key: str, *, skip: bool) -> None:
    """As `MessageQueue.unblock`."""
    snapshot = await core.catalog.load()
    while True:
        route = snapshot.get(name)
        if not route.kept.ordered:
            raise not_ordered(name)
        keys = [*(core.keys.of(it) for it in ("meta", "dead", "deads")), *route.keys]
        fence = await _fence_of(core, route, ordering_key)
        arguments = (snapshot.version, core.now(), route.kept.sid, ordering_key, int(skip), fence)
        answer = await core.link("admin").safely(scripts().unblock, keys, *arguments)
        if answer == 0:
            raise not_blocked(name, ordering_key)
        if answer != OUTDATED:
            return
        snapshot = await core.catalog.load(snapshot)


async def _fence_of(core: Core, route: Route, ordering_key: str) -> int:
    """Return the fence of a mailbox's last claim; 0 if there is no mailbox."""
    packed = await core.link("admin").ask("HGET", route.box, ordering_key)
    return int(msgspec.msgpack.decode(packed)[FENCE]) if packed else 0


async def retire(core: Core, name: str, event: str | None, backlog: Backlog) -> int:
    """As `MessageQueue.retire`."""
    while True:
        finished = await finish_retiring(core.link("admin"), core.keys, core.now)
        snapshot = await core.catalog.load()
        if name not in snapshot.by_name and name in finished and event is None:
            return finished[name]
        route = snapshot.get(name, event)
        going = Going.of(route, event, backlog)
        if event is not None and backlog == "refuse" and (waiting := await count(core.link("admin"), core.keys, going)):
            raise has_backlog(name, waiting)
        answer = await _begin(core, snapshot, route, going)
        if isinstance(answer, list) or answer not in {OUTDATED, RETIRING}:
            break
    if isinstance(answer, list):
        reason, detail = (it.decode().rstrip(".") for it in answer)
        if reason == "worker":
            raise in_use(name, detail)
        raise has_backlog(name, detail)
    if event is None:
        core.catalog.forget(route.kept.names)
    else:
        core.catalog.forget_event(route.kept.names, event)
    await core.catalog.load()
    return await finish(core.link("admin"), core.keys, core.now, going)


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
