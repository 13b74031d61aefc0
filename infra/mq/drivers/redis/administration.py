"""What operators do to subscriptions."""

import secrets
from typing import Any, Literal

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import Content, Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.errors import ListenerInUse, MailboxNotBlocked


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


async def retire(core: Core, name: str, event: str | None, backlog: Literal["refuse", "discard", "dead"]) -> int:
    """As `MessageQueue.retire`."""
    snapshot = await core.catalog.load()
    while True:
        route = snapshot.get(name, event)
        answer = await _retire(core, snapshot, route, event, backlog)
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
    await core.catalog.load()
    return int(answer)


async def _retire(core: Core, snapshot: Snapshot, route: Route, event: str | None, backlog: str) -> Any:  # noqa: ANN401
    kept = route.kept
    events = kept.events if event is None else [event]
    names = ("meta", "leases", "workers", "dead", "deads", "plans", "planned")
    parking = [core.keys.parking(kept.sid, it) for it in events]
    arguments = (
        snapshot.version,
        secrets.token_hex(8),
        msgspec.msgpack.encode(_without(snapshot.content, route, event)),
        core.now(),
        kept.sid,
        int(kept.ordered),
        event or "",
        backlog,
        msgspec.msgpack.encode(kept.names),
        core.keys.changes,
    )
    keys = [*(core.keys.of(it) for it in names), *route.keys, *parking]
    return await core.link("admin").safely(scripts().retire, keys, *arguments)


def _without(content: Content, route: Route, event: str | None) -> Content:
    changed = content.copy()
    sid = route.kept.sid
    if event is None:
        changed.subscriptions = [it for it in changed.subscriptions if it.sid != sid]
        changed.retired[sid] = route.kept.name
    else:
        for kept in changed.subscriptions:
            if kept.sid == sid:
                kept.events.remove(event)
    return changed
