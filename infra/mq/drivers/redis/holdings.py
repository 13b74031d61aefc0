"""What a consumer owns, as far as it knows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from infra.mq.drivers.redis.wire import serial_of
from infra.mq.types import Claim, Settlement


class Holdings:
    """Claims that were heard of and whose end was not confirmed yet, by subscription, each with its fence.

    An unordered one goes by its delivery's serial, an ordered one by the key of its mailbox. So a claim whose answer
    was lost can be told from those that are known, and one that the server forgot is noticed.
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}
        self._settling: list[Sequence[Settlement]] = []
        """Ends that are being told to the server."""

        self._doubtful: dict[str, set[str]] = {}
        """Claims of which the server may have heard the end."""

        self._kept: list[Claim] = []

    def add(self, sid: str, claims: Iterable[Claim], *, ordered: bool) -> None:
        """Take note of claims."""
        held = self._held.setdefault(sid, {})
        if ordered:
            held.update((it.ordering_key or "", it.fence) for it in claims)
        else:
            held.update((str(it.deliveries[0].id)[:31], it.fence) for it in claims)

    def settling(self, settlements: Sequence[Settlement]) -> None:
        """Take note that claims are about to end: from now on the server may know of that before this consumer."""
        self._settling.append(settlements)

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Take note of confirmed ends."""
        self._settling.remove(settlements)
        for it in settlements:
            claim = it.claim
            text = str(it.delivery.id)
            sid = text[32:40]
            if not claim.ordered:
                name = text[:31]
            elif it.close:
                name = claim.ordering_key or ""
            else:
                continue
            held = self._held.get(sid)
            if held is not None and held.get(name) == claim.fence:
                del held[name]
            if self._doubtful:
                self._doubtful.get(sid, set()).discard(name)

    def unsettled(self, settlements: Sequence[Settlement]) -> None:
        """Take note of ends that the server may have heard of, or not."""
        self._settling.remove(settlements)
        for sid, name in map(_place_of, settlements):
            self._doubtful.setdefault(sid, set()).add(name)

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

    def sure_of(self, sid: str) -> Mapping[str, int]:
        """Return the claims of a subscription of which the server cannot have heard an end."""
        return dict(self.sure()).get(sid, {})

    def sure(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Return such claims by subscription."""
        ending = self._ending()
        for sid, held in list(self._held.items()):
            found = {name: fence for name, fence in held.items() if name not in ending.get(sid, ())}
            if found:
                yield sid, found

    def _ending(self) -> dict[str, set[str]]:
        ending = {sid: set(names) for sid, names in self._doubtful.items()}
        for settlements in self._settling:
            for sid, name in map(_place_of, settlements):
                ending.setdefault(sid, set()).add(name)
        return ending

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
