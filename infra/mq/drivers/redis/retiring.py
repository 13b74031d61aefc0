"""Removing what waits for a retired subscription, or one event of it, in steps that any process can go on with."""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.scripts import scripts

if TYPE_CHECKING:
    from infra.mq.drivers.redis.registry import Route

RETIRING = -2
"""What a script answers that must wait until a part of the subscription has been removed."""


class Going(msgspec.Struct, frozen=True):
    """The note of a retirement under way: a subscription, or an event of it."""

    sid: str
    name: str
    ordered: bool
    event: str
    """Empty for all of it."""

    events: list[str]
    backlog: str
    token: str = ""
    """Makes each note differ from all others, so that a late step of an earlier retirement does nothing."""

    @classmethod
    def of(cls, route: "Route", event: str | None, backlog: str) -> "Going":
        """Return a new note."""
        kept = route.kept
        return cls(kept.sid, kept.name, kept.ordered, event or "", kept.events, backlog, secrets.token_hex(8))


async def finish_retiring(link: Link, keys: Keys, now: Callable[[], str]) -> dict[str, int]:
    """Finish every retirement under way; return how many deliveries each subscription lost, by name."""
    counts: dict[str, int] = {}
    for note in await link.ask("HVALS", keys.of("retiring")):
        going = msgspec.msgpack.decode(note, type=Going)
        counts[going.name] = counts.get(going.name, 0) + await _steps(link, keys, now, going, _first(going), note=note)
    return counts


async def finish(link: Link, keys: Keys, now: Callable[[], str], going: Going) -> int:
    """Finish one retirement; return how many deliveries were removed."""
    return await _steps(link, keys, now, going, _first(going), note=msgspec.msgpack.encode(going))


async def count(link: Link, keys: Keys, going: Going) -> int:
    """Return how many deliveries a retirement would remove."""
    return await _steps(link, keys, str, going, b"count", b"l0")


def _first(going: Going) -> bytes:
    # A refusal counted first; what came between that and the end of the subscription is still handed out.
    return b"end" if going.event and going.backlog == "refuse" else b"plan"


async def _steps(
    link: Link,
    keys: Keys,
    now: Callable[[], str],
    going: Going,
    phase: bytes,
    cursor: bytes = b"0",
    note: bytes = b"",
) -> int:
    sid = going.sid
    names = [keys.of(it) for it in ("meta", "dead", "deads", "plans", "planned", "retiring")]
    names += [*keys.group(sid), keys.old_line(sid), keys.parking_index(sid)]
    names += [keys.parking(sid, it) for it in going.events]
    what = (sid, int(going.ordered), going.event, int(going.backlog == "dead"))
    total = 0
    while phase:
        phase, cursor, removed = await link.safely(scripts().retire_step, names, now(), *what, phase, cursor, note)
        total += removed
    return total
