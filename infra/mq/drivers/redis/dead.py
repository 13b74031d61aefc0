"""Dead letters: listing, retrying and discarding."""

from collections.abc import Sequence

import msgspec

from infra.mq.dead_ids import number_of
from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.registry import RegistrySnapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import decode, seconds
from infra.mq.refusals import no_dead_letter
from infra.mq.types import DeadLetter

PAGE = 500
"""Number of entries of the index that one request reads or deletes."""

AT_ONCE = 100
"""Number of dead letters that one request reads while they are small; otherwise it reads one."""

SMALL = 10_000
"""The largest average size, in bytes, of dead letters that count as small."""

_LENGTH = 8
"""Number of digits in front of a dead letter that say how long the record before its message is."""


async def dead_letters(
    core: Core, subscription: str | None, event: str | None, limit: int, after: str | None
) -> list[DeadLetter]:
    """Implement `MessageQueue.dead_letters`."""
    snapshot = await core.registry.load()
    sids = None if subscription is None else _sids(snapshot, subscription)
    start = after if after is not None else "0"
    if number_of(start) is None:
        return []
    found: list[DeadLetter] = []
    link = core.link("admin")
    while len(found) < limit:
        entries = await link.query("ZRANGEBYSCORE", core.keys.of("deads"), f"({start}", "+inf", "LIMIT", 0, PAGE)
        numbers = []
        for entry in entries:
            number, sid, its_event = entry.decode().split(":", 2)
            if (sids is None or sid in sids) and event in {None, its_event}:
                numbers.append((number, sid))
            start = number
        found += await _read(core, snapshot, numbers[: limit - len(found)])
        if len(entries) < PAGE:
            break
    return found


async def dead_letter(core: Core, dead_id: str) -> DeadLetter:
    """Implement `MessageQueue.dead_letter`."""
    sid = await _sid_of(core, dead_id)
    found = await _read(core, await core.registry.load(), [(dead_id, sid)]) if sid else []
    if not found:
        raise no_dead_letter(dead_id)
    return found[0]


async def retry_dead(core: Core, dead_ids: Sequence[str]) -> int:
    """Implement `MessageQueue.retry_dead`."""
    retried = 0
    for dead_id in dead_ids:
        sid = await _sid_of(core, dead_id)
        if sid is not None:
            retried += await _retry_one(core, dead_id, sid)
    return retried


async def discard_dead(core: Core, dead_ids: Sequence[str]) -> int:
    """Implement `MessageQueue.discard_dead`."""
    known = [it for it in dict.fromkeys(dead_ids) if number_of(it) is not None]
    if not known:
        return 0
    keys = [core.keys.of(name) for name in ("meta", "dead", "deads")]
    count = 0
    for first in range(0, len(known), PAGE):
        count += await core.link("admin").run_repeatable(scripts().discard_dead, keys, *known[first : first + PAGE])
    return count


async def _retry_one(core: Core, dead_id: str, sid: str) -> int:
    snapshot = await core.registry.load()
    while True:
        route = snapshot.successor(sid)
        if route is None:
            return 0
        keys = [*(core.keys.of(name) for name in ("meta", "dead", "deads")), *route.keys]
        arguments = (snapshot.version, core.now(), dead_id, sid, int(route.subscription.ordered))
        answer = await core.link("admin").run_repeatable(scripts().retry_dead, keys, *arguments)
        if answer != OUTDATED:
            return int(answer)
        snapshot = await core.registry.load(snapshot)


async def _sid_of(core: Core, dead_id: str) -> str | None:
    if number_of(dead_id) is None:
        return None
    entries = await core.link("admin").query("ZRANGEBYSCORE", core.keys.of("deads"), dead_id, dead_id)
    for entry in entries:
        number, sid, _ = entry.decode().split(":", 2)
        if number == dead_id:
            return str(sid)
    return None


async def _read(core: Core, snapshot: RegistrySnapshot, numbers: Sequence[tuple[str, str]]) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    at, at_once = 0, 1
    while at < len(numbers):
        page = numbers[at : at + at_once]
        at += len(page)
        kept = await core.link("admin").query("HMGET", core.keys.of("dead"), *(number for number, _ in page))
        at_once = AT_ONCE if sum(len(it or b"") for it in kept) < len(page) * SMALL else 1
        found += [
            _letter_of(number, snapshot.name_of(sid), packed)
            for (number, sid), packed in zip(page, kept, strict=True)
            if packed is not None
        ]
    return found


def _letter_of(number: str, name: str, packed: bytes) -> DeadLetter:
    start = _LENGTH + int(packed[:_LENGTH])
    error, traceback, failures, crashes, died_at = msgspec.msgpack.decode(packed[_LENGTH:start])
    message = decode(packed[start:])
    return DeadLetter(
        id=number,
        subscription=name,
        message_id=message.id,
        event=message.event,
        ordering_key=message.ordering_key,
        body=message.body,
        error=error,
        traceback=traceback,
        failures=int(failures),
        crashes=int(crashes),
        published_at=message.published_at,
        died_at=seconds(died_at),
    )


def _sids(snapshot: RegistrySnapshot, name: str) -> set[str]:
    route = snapshot.by_name.get(name)
    if route is not None:
        return {route.subscription.sid, *snapshot.formerly(route)}
    return {sid for sid, its_name in snapshot.content.retired.items() if its_name == name}
