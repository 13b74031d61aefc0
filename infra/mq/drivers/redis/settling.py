"""How the ends of claims are told to the script that carries them out."""

from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.wire import microseconds, serial_of
from infra.mq.types import Outcome, Settlement

_CODES = {
    Outcome.DONE: 0,
    Outcome.RETRY: 1,
    Outcome.DEFER: 2,
    Outcome.RELEASE: 3,
    Outcome.PARK: 4,
    Outcome.BLOCK: 5,
    Outcome.DEAD: 6,
}


class Batch:
    """Settlements, sorted by subscription."""

    def __init__(self, settlements: Sequence[Settlement], keys: Keys) -> None:
        self._keys = keys
        self._groups: dict[str, _Group] = {}
        for index, settlement in enumerate(settlements):
            sid = str(settlement.delivery.id)[32:40]
            group = self._groups.get(sid)
            if group is None:
                group = self._groups[sid] = _Group(ordered=settlement.claim.ordered)
            group.add(index, settlement)

    def keys(self) -> list[str]:
        """Return the keys that the script works on."""
        names = [self._keys.of(name) for name in ("meta", "dead", "deads")]
        for sid in self._groups:
            names += self._keys.group(sid)
        for sid, group in self._groups.items():
            names += [self._keys.parking(sid, event) for event in group.events]
        return names

    def packed(self) -> bytes:
        """Return it as the script reads it."""
        return msgspec.msgpack.encode([group.packed(sid) for sid, group in self._groups.items()])


class _Group:
    """What belongs to one subscription."""

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered
        self.events: dict[str, int] = {}
        self._done: list[str] = []
        self._others: list[list[Any]] = []
        self._claims: dict[tuple[str, int], list[list[Any]]] = {}

    def add(self, index: int, settlement: Settlement) -> None:
        delivery, claim = settlement.delivery, settlement.claim
        if delivery.event not in self.events:
            self.events[delivery.event] = len(self.events) + 1
        if self.ordered:
            end = self._end(index, int(str(delivery.id)[41:]), settlement)
            self._claims.setdefault((claim.ordering_key or "", claim.fence), []).append(end)
        elif settlement.outcome is Outcome.DONE:
            self._done.append(serial_of(delivery))
        else:
            self._others.append(self._end(index, serial_of(delivery), settlement))

    def packed(self, sid: str) -> list[Any]:
        """Return it as the script reads it."""
        if self.ordered:
            claims = [(key, fence, ends) for (key, fence), ends in self._claims.items()]
            return [sid, True, len(self.events), claims]
        return [sid, False, len(self.events), self._done, self._others]

    def _end(self, index: int, place: int | str, settlement: Settlement) -> list[Any]:
        outcome = _CODES[settlement.outcome]
        if not outcome:
            return [index, place, outcome, settlement.close]
        failure = settlement.failure
        return [
            index,
            place,
            outcome,
            settlement.close,
            microseconds(max(settlement.delay, 0.0)),
            settlement.charge,
            _text(failure.error) if failure else None,
            _text(failure.traceback) if failure else None,
            self.events[settlement.delivery.event],
        ]


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
