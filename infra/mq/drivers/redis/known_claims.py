"""The claims that a consumer knows to own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from infra.mq.drivers.redis.wire import serial_of
from infra.mq.types import Claim, Settlement


class KnownClaims:
    """Received claims whose settlement is not confirmed, by sid and name, each with its fence.

    The name of an unordered claim is the serial of its delivery, of an ordered claim the key of its mailbox. By
    comparison with the server the consumer finds claims whose answer was lost, and notices claims that the server lost.
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}
        self._settling: list[Sequence[Settlement]] = []
        """Settlements that are being sent."""

        self._uncertain: dict[str, set[str]] = {}
        """Claims that the server may have settled, because an answer was lost."""

        self._kept: list[Claim] = []

    def add(self, sid: str, claims: Iterable[Claim], *, ordered: bool) -> None:
        """Add received claims."""
        held = self._held.setdefault(sid, {})
        if ordered:
            held.update((it.ordering_key or "", it.fence) for it in claims)
        else:
            held.update((str(it.deliveries[0].id)[:31], it.fence) for it in claims)

    def settling(self, settlements: Sequence[Settlement]) -> None:
        """Note that settlements are being sent: from now on the server may have ended the claims."""
        self._settling.append(settlements)

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Remove the claims whose settlements the server has confirmed."""
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
            if self._uncertain:
                self._uncertain.get(sid, set()).discard(name)

    def unsettled(self, settlements: Sequence[Settlement]) -> None:
        """Note that the answer was lost: the server may have ended the claims, or not."""
        self._settling.remove(settlements)
        for sid, name in map(_place_of, settlements):
            self._uncertain.setdefault(sid, set()).add(name)

    def keep(self, claim: Claim) -> None:
        """Exempt a claim from the release at close."""
        self._kept.append(claim)

    def of(self, sid: str) -> Mapping[str, int]:
        """Return a copy of the known claims of a subscription."""
        return dict(self._held.get(sid, {}))

    def knows(self, sid: str, claim: Claim, before: Mapping[str, int]) -> bool:
        """Return whether this claim is known now, or was known in `before`."""
        name = (claim.ordering_key or "") if claim.ordered else serial_of(claim.deliveries[0])
        return claim.fence in {self._held.get(sid, {}).get(name), before.get(name)}

    def sure_of(self, sid: str) -> Mapping[str, int]:
        """Return the claims of a subscription that the server cannot have ended by a settlement."""
        return dict(self.sure()).get(sid, {})

    def sure(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Yield the claims that the server cannot have ended by a settlement, by sid."""
        ending = self._ending()
        for sid, held in list(self._held.items()):
            found = {name: fence for name, fence in held.items() if name not in ending.get(sid, ())}
            if found:
                yield sid, found

    def _ending(self) -> dict[str, set[str]]:
        ending = {sid: set(names) for sid, names in self._uncertain.items()}
        for settlements in self._settling:
            for sid, name in map(_place_of, settlements):
                ending.setdefault(sid, set()).add(name)
        return ending

    def all(self) -> dict[str, list[str]]:
        """Return the names of all known claims by subscription."""
        return {sid: list(held) for sid, held in self._held.items() if held}

    def kept(self) -> dict[str, list[str]]:
        """Return the names of the claims passed to `keep`, by subscription."""
        kept: dict[str, list[str]] = {}
        for claim in self._kept:
            sid = str(claim.deliveries[0].id)[32:40]
            name = (claim.ordering_key or "") if claim.ordered else serial_of(claim.deliveries[0])
            kept.setdefault(sid, []).append(name)
        return kept

    @property
    def keeps(self) -> bool:
        """Whether any claim was passed to `keep`."""
        return bool(self._kept)


def _place_of(settlement: Settlement) -> tuple[str, str]:
    text = str(settlement.delivery.id)
    name = (settlement.claim.ordering_key or "") if settlement.claim.ordered else text[:31]
    return text[32:40], name
