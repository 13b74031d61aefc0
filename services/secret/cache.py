"""A cache of authenticated principals, by the hash of their secret."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from infra.clock import Clock
from models.secret import Scope

CAPACITY: Final = 10_000
"""Entries that the cache holds at most; the oldest is removed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The user who sent a request, and the scopes of the secret that authenticated it."""

    user_id: UUID
    email: str
    name: str
    secret_id: UUID
    scopes: frozenset[Scope]


class PrincipalCache:
    """Principals by the hash of their secret, each cached for at most `seconds`."""

    def __init__(self, clock: Clock, seconds: float, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._seconds = seconds
        self._capacity = capacity
        self._entries: OrderedDict[str, tuple[float, Principal]] = OrderedDict()
        self.generation = 0
        """Grows with every removal. Read it before the database, and pass it to `put`."""

    def get(self, digest: str) -> Principal | None:
        """Return the cached principal, or None if there is none or it has expired."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        expires, principal = entry
        if self._clock.monotonic() < expires:
            return principal
        del self._entries[digest]
        return None

    def put(self, digest: str, principal: Principal, generation: int) -> None:
        """Cache `principal`, unless an entry was removed since `generation`: this principal may be stale, too."""
        if generation != self.generation:
            return
        self._entries[digest] = (self._clock.monotonic() + self._seconds, principal)
        self._entries.move_to_end(digest)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def drop(self, stale: Callable[[Principal], bool]) -> None:
        """Remove the principals for which `stale` returns True."""
        self.generation += 1
        for digest in [digest for digest, (_, principal) in self._entries.items() if stale(principal)]:
            del self._entries[digest]

    def clear(self) -> None:
        """Remove all entries."""
        self.generation += 1
        self._entries.clear()
