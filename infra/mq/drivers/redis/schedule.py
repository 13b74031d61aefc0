"""Scheduled messages: cancelling them."""

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import GROUP
from infra.mq.drivers.redis.scripts import scripts

_PLAN, _BODY = GROUP.index("plan"), GROUP.index("body")


async def cancel(core: Core, message_id: str) -> bool:
    """Implement `MessageQueue.cancel`."""
    return await _cancel(core, message_id, check_only=False)


async def is_scheduled(core: Core, message_id: str) -> bool:
    """Implement `MessageQueue.scheduled`."""
    return await _cancel(core, message_id, check_only=True)


async def _cancel(core: Core, message_id: str, *, check_only: bool) -> bool:
    link = core.link("admin")
    names = ("meta", "plans", "planned", "accepted", "resent", "dedupe")
    while True:
        entries = await link.query("HGET", core.keys.of("planned"), message_id)
        if entries is None:
            return False
        keys = [core.keys.of(it) for it in names]
        for _, _, sids in msgspec.msgpack.decode(entries):
            for sid in sids:
                group = core.keys.group(sid)
                keys += [group[_PLAN], group[_BODY]]
        found = await link.run_repeatable(scripts().cancel, keys, core.now(), message_id, entries, int(not check_only))
        if found != OUTDATED:
            return bool(found)
