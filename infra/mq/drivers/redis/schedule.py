"""Messages that their publisher delayed."""

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.keys import GROUP
from infra.mq.drivers.redis.scripts import scripts

_PLAN, _BODY = GROUP.index("plan"), GROUP.index("body")


async def withdraw(core: Core, message_id: str, *, do: bool) -> bool:
    """Cancel a scheduled message for all its subscriptions, or, without `do`, say whether that would work now."""
    link = core.link("admin")
    names = ("meta", "plans", "planned", "accepted", "resent")
    while True:
        entries = await link.ask("HGET", core.keys.of("planned"), message_id)
        if entries is None:
            return False
        keys = [core.keys.of(it) for it in names]
        for _, _, sids in msgspec.msgpack.decode(entries):
            for sid in sids:
                group = core.keys.group(sid)
                keys += [group[_PLAN], group[_BODY]]
        found = await link.safely(scripts().cancel, keys, core.now(), message_id, entries, int(do))
        if found != OUTDATED:
            return bool(found)
