"""What a consumer owns, as far as it knows."""

from collections.abc import Iterable, Sequence
from typing import Any

from infra.mq.drivers.redis.registry import Route
from infra.mq.drivers.redis.wire import serial_of
from infra.mq.types import Claim, Settlement


class Holdings:
    """Claims that came and were not settled yet, so that one that came unheard can be told from them."""

    def __init__(self) -> None:
        self._deliveries: dict[str, set[str]] = {}
        self._mailboxes: dict[str, dict[str, int]] = {}
        self._kept: list[Claim] = []

    def add(self, sid: str, claims: Iterable[Claim], *, ordered: bool) -> None:
        """Take note of claims."""
        if ordered:
            mailboxes = self._mailboxes.setdefault(sid, {})
            mailboxes.update((it.ordering_key or "", it.fence) for it in claims)
        else:
            deliveries = self._deliveries.setdefault(sid, set())
            deliveries.update(str(it.deliveries[0].id)[:31] for it in claims)

    def remove(self, settlements: Iterable[Settlement]) -> None:
        """Take note of their ends."""
        for it in settlements:
            text = str(it.delivery.id)
            sid = text[32:40]
            if not it.claim.ordered:
                if (deliveries := self._deliveries.get(sid)) is not None:
                    deliveries.discard(text[:31])
            elif it.close:
                mailboxes, key = self._mailboxes.get(sid, {}), it.claim.ordering_key or ""
                if mailboxes.get(key) == it.claim.fence:
                    del mailboxes[key]

    def keep(self, claim: Claim) -> None:
        """Exempt a claim from what is given back at the end."""
        self._kept.append(claim)

    def known(self, routes: Sequence[Route]) -> list[tuple[bool, list[Any]]]:
        """Return what is known of each subscription."""
        told: list[tuple[bool, list[Any]]] = []
        for route in routes:
            sid = route.kept.sid
            if route.kept.ordered:
                told.append((True, list(self._mailboxes.get(sid, {}).items())))
            else:
                told.append((False, list(self._deliveries.get(sid, ()))))
        return told

    def kept(self, routes: Sequence[Route]) -> list[tuple[bool, list[str]]]:
        """Return what is kept of each subscription."""
        told: dict[str, list[str]] = {}
        for claim in self._kept:
            sid = str(claim.deliveries[0].id)[32:40]
            name = (claim.ordering_key or "") if claim.ordered else serial_of(claim.deliveries[0])
            told.setdefault(sid, []).append(name)
        return [(it.kept.ordered, told.get(it.kept.sid, [])) for it in routes]

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return bool(self._kept)
