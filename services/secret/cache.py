"""Who is behind a secret, remembered for a while."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from infra.clock import Clock
from models.secret import Scope

CAPACITY: Final = 10_000
"""Entries kept at most; the ones put in first go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whom a request comes from, and what the secret that it came with is good for."""

    user_id: UUID
    email: str
    name: str
    secret_id: UUID
    scopes: frozenset[Scope]


class PrincipalCache:
    """Principals by the hash of their secret, each for `seconds` at most."""

    def __init__(self, clock: Clock, seconds: float, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._seconds = seconds
        self._capacity = capacity
        self._entries: OrderedDict[str, tuple[float, Principal]] = OrderedDict()
        self.generation = 0
        """Grows whenever something was dropped: read it before the database, hand it to `put`."""

    def get(self, digest: str) -> Principal | None:
        """Return what is remembered and still fresh."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        expires, principal = entry
        if self._clock.monotonic() < expires:
            return principal
        del self._entries[digest]
        return None

    def put(self, digest: str, principal: Principal, generation: int) -> None:
        """Remember `principal`, unless something was dropped since `generation`: it may have been this very one."""
        if generation != self.generation:
            return
        self._entries[digest] = (self._clock.monotonic() + self._seconds, principal)
        self._entries.move_to_end(digest)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def drop(self, stale: Callable[[Principal], bool]) -> None:
        """Forget the principals that `stale` says True to."""
        self.generation += 1
        for digest in [digest for digest, (_, principal) in self._entries.items() if stale(principal)]:
            del self._entries[digest]

    def clear(self) -> None:
        """Forget everything."""
        self.generation += 1
        self._entries.clear()
