"""Operations on subscriptions: unblock and retire."""

import secrets
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import RegistryContent, RegistrySnapshot, Route
from infra.mq.drivers.redis.retiring import RETIRING, RetirementNote, count, finish, finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.refusals import has_backlog, in_use, not_blocked, not_ordered
from infra.mq.types import BacklogPolicy

FENCE = 5
"""Index in a packed mailbox of the fence of its last claim."""


async def unblock(core: Core, name: str, ordering_key: str, *, skip: bool) -> None:
    """Implement `MessageQueue.unblock`."""
    snapshot = await core.registry.load()
    while True:
        route = snapshot.get(name)
        if not route.subscription.ordered:
            raise not_ordered(name)
        keys = [*(core.keys.of(it) for it in ("meta", "dead", "deads")), *route.keys]
        fence = await _fence_of(core, route, ordering_key)
        arguments = (snapshot.version, core.now(), route.subscription.sid, ordering_key, int(skip), fence)
        answer = await core.link("admin").run_repeatable(scripts().unblock, keys, *arguments)
        if answer == 0:
            raise not_blocked(name, ordering_key)
        if answer != OUTDATED:
            return
        snapshot = await core.registry.load(snapshot)


async def _fence_of(core: Core, route: Route, ordering_key: str) -> int:
    """Return the fence of a mailbox's last claim; 0 if there is no mailbox."""
    packed = await core.link("admin").query("HGET", route.box, ordering_key)
    return int(msgspec.msgpack.decode(packed)[FENCE]) if packed else 0


async def retire(core: Core, name: str, event: str | None, backlog: BacklogPolicy) -> int:
    """Implement `MessageQueue.retire`."""
    while True:
        finished = await finish_retiring(core.link("admin"), core.keys, core.now)
        snapshot = await core.registry.load()
        if name not in snapshot.by_name and name in finished and event is None:
            return finished[name]
        route = snapshot.get(name, event)
        retirement = _note_of(route, event, backlog)
        if (
            event is not None
            and backlog == "refuse"
            and (waiting := await count(core.link("admin"), core.keys, retirement))
        ):
            raise has_backlog(name, waiting)
        answer = await _begin(core, snapshot, route, retirement)
        if isinstance(answer, list) or answer not in {OUTDATED, RETIRING}:
            break
    if isinstance(answer, list):
        reason, detail = (it.decode().rstrip(".") for it in answer)
        if reason == "worker":
            raise in_use(name, detail)
        raise has_backlog(name, detail)
    if event is None:
        core.registry.forget(route.subscription.names)
    else:
        core.registry.forget_event(route.subscription.names, event)
    await core.registry.load()
    return await finish(core.link("admin"), core.keys, core.now, retirement)


def _note_of(route: Route, event: str | None, backlog: BacklogPolicy) -> RetirementNote:
    subscription = route.subscription
    return RetirementNote(
        subscription.sid,
        subscription.name,
        subscription.ordered,
        event or "",
        subscription.events,
        backlog,
        secrets.token_hex(8),
    )


async def _begin(core: Core, snapshot: RegistrySnapshot, route: Route, retirement: RetirementNote) -> Any:  # noqa: ANN401 - the answer of a script
    keys = [core.keys.of(it) for it in ("meta", "leases", "workers", "retiring")]
    arguments = (
        snapshot.version,
        secrets.token_hex(8),
        msgspec.msgpack.encode(_without(snapshot.content, route, retirement.event)),
        core.now(),
        retirement.sid,
        int(retirement.ordered),
        retirement.event,
        retirement.backlog,
        msgspec.msgpack.encode(route.subscription.names),
        core.keys.changes,
        msgspec.msgpack.encode(retirement),
    )
    keys += [*route.keys, core.keys.old_line(retirement.sid)]
    return await core.link("admin").run_repeatable(scripts().retire, keys, *arguments)


def _without(content: RegistryContent, route: Route, event: str) -> RegistryContent:
    changed = content.copy()
    sid = route.subscription.sid
    if not event:
        changed.subscriptions = [it for it in changed.subscriptions if it.sid != sid]
        changed.retired[sid] = route.subscription.name
    else:
        for kept in changed.subscriptions:
            if kept.sid == sid:
                kept.events.remove(event)
        changed.retired_events.setdefault(sid, []).append(event)
    return changed
