"""What a consumer owns, as far as it knows."""

from collections.abc import Iterable, Iterator, Mapping

from infra.mq.drivers.redis.wire import serial_of
from infra.mq.types import Claim, Settlement


class Holdings:
    """Claims that were heard of and whose end was not confirmed yet, by subscription, each with its fence.

    An unordered one goes by its delivery's serial, an ordered one by the key of its mailbox. So a claim whose answer
    was lost can be told from those that are known, and one that the server forgot is noticed.
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}
        self._settling: dict[str, set[str]] = {}
        self._kept: list[Claim] = []

    def add(self, sid: str, claims: Iterable[Claim], *, ordered: bool) -> None:
        """Take note of claims."""
        held = self._held.setdefault(sid, {})
        if ordered:
            held.update((it.ordering_key or "", it.fence) for it in claims)
        else:
            held.update((str(it.deliveries[0].id)[:31], it.fence) for it in claims)

    def settling(self, settlements: Iterable[Settlement]) -> None:
        """Take note that claims are about to end: from now on the server may know of that before this consumer."""
        for it in settlements:
            if not it.claim.ordered or it.close:
                sid, name = _place_of(it)
                self._settling.setdefault(sid, set()).add(name)

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """Take note of confirmed ends."""
        for it in settlements:
            if it.claim.ordered and not it.close:
                continue
            sid, name = _place_of(it)
            self._settling.get(sid, set()).discard(name)
            held = self._held.get(sid, {})
            if held.get(name) == it.claim.fence:
                del held[name]

    def keep(self, claim: Claim) -> None:
        """Exempt a claim from what is given back at the end."""
        self._kept.append(claim)

    def of(self, sid: str) -> Mapping[str, int]:
        """Return the claims of a subscription as they are now."""
        return dict(self._held.get(sid, {}))

    def knows(self, sid: str, claim: Claim, before: Mapping[str, int]) -> bool:
        """Return whether this claim was heard of, now or before."""
        name = (claim.ordering_key or "") if claim.ordered else serial_of(claim.deliveries[0])
        return claim.fence in {self._held.get(sid, {}).get(name), before.get(name)}

    def is_sure(self, sid: str, name: str) -> bool:
        """Return whether a claim is known, and no end of it is under way."""
        return name in self._held.get(sid, ()) and name not in self._settling.get(sid, ())

    def sure(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Return the claims that no end is under way for, by subscription."""
        for sid, held in self._held.items():
            settling = self._settling.get(sid, set())
            found = {name: fence for name, fence in held.items() if name not in settling}
            if found:
                yield sid, found

    def all(self) -> dict[str, list[str]]:
        """Return the names of all claims by subscription."""
        return {sid: list(held) for sid, held in self._held.items() if held}

    def kept(self) -> dict[str, list[str]]:
        """Return the names of what is kept by subscription."""
        told: dict[str, list[str]] = {}
        for claim in self._kept:
            sid = str(claim.deliveries[0].id)[32:40]
            name = (claim.ordering_key or "") if claim.ordered else serial_of(claim.deliveries[0])
            told.setdefault(sid, []).append(name)
        return told

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return bool(self._kept)


def _place_of(settlement: Settlement) -> tuple[str, str]:
    text = str(settlement.delivery.id)
    name = (settlement.claim.ordering_key or "") if settlement.claim.ordered else text[:31]
    return text[32:40], name
