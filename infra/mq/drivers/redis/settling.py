"""Requests for the script that settles claims."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from infra.mq.dividing import divided
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


STEP = 500
"""The largest number of settlements per request, unless a single claim has more."""

STEP_BYTES = 4 * 1024 * 1024
"""The largest size, in bytes, of the errors and messages that one request makes the server copy."""


def in_steps(settlements: Sequence[Settlement]) -> Iterator[Sequence[Settlement]]:
    """Divide settlements into requests; those of one claim stay together, in their order."""
    if len(settlements) <= STEP and (
        all(it.outcome is Outcome.DONE for it in settlements) or sum(map(_weight, settlements)) <= STEP_BYTES
    ):
        yield settlements
        return
    yield from divided(settlements, most=STEP, most_bytes=STEP_BYTES, size_of=_weight)


def _weight(settlement: Settlement) -> int:
    if settlement.outcome is Outcome.DONE:
        return 0
    failure = settlement.failure
    texts = len(failure.error) + len(failure.traceback) if failure else 0
    return texts + (len(settlement.delivery.body) if settlement.outcome is Outcome.DEAD else 0)


class SettlementBatch:
    """The settlements of one request, grouped by subscription."""

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
        """Return the keys of the script."""
        names = [self._keys.of(name) for name in ("meta", "dead", "deads")]
        for sid in self._groups:
            names += self._keys.group(sid)
        for sid, group in self._groups.items():
            names.append(self._keys.parking_index(sid))
            names += [self._keys.parking(sid, need) for need in group.needs]
        return names

    def packed(self) -> bytes:
        """Return the settlements as the script reads them."""
        return msgspec.msgpack.encode([group.packed(sid) for sid, group in self._groups.items()])


class _Group:
    """The settlements of one subscription."""

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered
        self.needs: dict[str, int] = {}
        self._done: list[str] = []
        self._others: list[list[Any]] = []
        self._claims: dict[tuple[str, int], list[list[Any]]] = {}

    def add(self, index: int, settlement: Settlement) -> None:
        delivery, claim = settlement.delivery, settlement.claim
        need = settlement.needs or delivery.event
        if need not in self.needs:
            self.needs[need] = len(self.needs) + 1
        if self.ordered:
            end = self._end(index, int(str(delivery.id)[41:]), settlement)
            self._claims.setdefault((claim.ordering_key or "", claim.fence), []).append(end)
        elif settlement.outcome is Outcome.DONE:
            self._done.append(serial_of(delivery))
        else:
            self._others.append([*self._end(index, serial_of(delivery), settlement), claim.fence])

    def packed(self, sid: str) -> list[Any]:
        """Return the settlements as the script reads them."""
        if self.ordered:
            claims = [(key, fence, ends) for (key, fence), ends in self._claims.items()]
            return [sid, True, len(self.needs), claims]
        return [sid, False, len(self.needs), self._done, self._others]

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
            self.needs[settlement.needs or settlement.delivery.event],
        ]


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
