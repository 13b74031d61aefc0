"""Removal of the deliveries of a retired subscription or event, in steps that any process can continue."""

from collections.abc import Callable

import msgspec

from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.refusals import RETIRED

RETIRING = -2
"""The answer of a script that must wait for a retirement of the same subscription in progress."""


class RetirementNote(msgspec.Struct, frozen=True):
    """The stored note of a retirement in progress, of a subscription or one event of it."""

    sid: str
    name: str
    ordered: bool
    event: str
    """The retired event; empty for the whole subscription."""

    events: list[str]
    backlog: str
    token: str = ""
    """A random text that makes each note unique, so that a late step of an earlier retirement does nothing."""


async def finish_retiring(link: Link, keys: Keys, now: Callable[[], str]) -> dict[str, int]:
    """Finish all retirements in progress; return the number of deliveries removed per subscription, by name.

    The numbers include what other processes have removed.
    """
    counts: dict[str, int] = {}
    for note in await link.query("HVALS", keys.of("retiring")):
        retirement = msgspec.msgpack.decode(note, type=RetirementNote)
        counts[retirement.name] = counts.get(retirement.name, 0) + await _steps(
            link, keys, now, retirement, _first(retirement), note=note
        )
    return counts


async def finish(link: Link, keys: Keys, now: Callable[[], str], retirement: RetirementNote) -> int:
    """Finish one retirement; return the number of deliveries removed, by other processes too."""
    return await _steps(link, keys, now, retirement, _first(retirement), note=msgspec.msgpack.encode(retirement))


async def count(link: Link, keys: Keys, retirement: RetirementNote) -> int:
    """Return the number of deliveries that a retirement would remove."""
    return await _steps(link, keys, str, retirement, b"count", b"l0")


def _first(retirement: RetirementNote) -> bytes:
    # With "refuse" there was no delivery to remove; those that were published since then are still delivered.
    return b"end" if retirement.event and retirement.backlog == "refuse" else b"plan"


async def _steps(
    link: Link,
    keys: Keys,
    now: Callable[[], str],
    retirement: RetirementNote,
    phase: bytes,
    cursor: bytes = b"0",
    note: bytes = b"",
) -> int:
    sid = retirement.sid
    names = [keys.of(it) for it in ("meta", "dead", "deads", "plans", "planned", "retiring")]
    names += [*keys.group(sid), keys.old_line(sid), keys.parking_index(sid), keys.removed(sid, retirement.token)]
    names += [keys.parking(sid, it) for it in retirement.events]
    what = (sid, int(retirement.ordered), retirement.event, int(retirement.backlog == "dead"))
    total, counts = 0, phase == b"count"
    while phase:
        phase, cursor, number = await link.run_repeatable(
            scripts().retire_step, names, now(), *what, phase, cursor, note, RETIRED
        )
        total = total + number if counts else number
    return total
