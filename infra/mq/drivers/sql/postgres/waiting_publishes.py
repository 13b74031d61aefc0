"""Publishes that wait for another transaction, which holds the lock on one of their ordering keys or ids."""

import itertools
from functools import cached_property

from infra.mq.batching import PublishCall
from infra.mq.drivers.sql.postgres.errors import Held


class LockingCall(PublishCall):
    """A call of `publish` that may have to wait for locks, which have names: "key" or "id", the event, and the value.

    The event is part of the name because messages of different events do not share locks.
    """

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all locks for which it may have to wait."""
        return self.names_of("keys") | self.names_of("ids")

    def names_of(self, held: Held) -> frozenset[str]:
        """Return the names of the locks of one kind for which it may have to wait; none for the registry."""
        if held == "keys":
            return frozenset(f"key {it.event}\n{it.ordering_key or ''}" for it in self.messages)
        if held == "ids":
            return frozenset(f"id {it.event}\n{it.id}" for it in self.messages if it.dedupe)
        return frozenset()


class _Waiting:
    def __init__(self, names: frozenset[str], deadline: float, turn: int) -> None:
        self.names = names
        self.deadline = deadline
        self.turn = turn


class WaitingPublishes:
    """Waiting requests in their order; those that wait for the same locks are tried together and in order."""

    def __init__(self) -> None:
        self._requests: dict[LockingCall, _Waiting] = {}
        self._turns = itertools.count()
        self._busy: dict[str, int] = {}
        """The number of requests that wait for each name."""

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def names(self) -> frozenset[str]:
        """The names of all locks for which requests wait."""
        return frozenset(self._busy)

    def concerns(self, request: LockingCall) -> bool:
        """Return whether `request` must wait behind another one."""
        return bool(self._busy) and not self._busy.keys().isdisjoint(request.names)

    def add(self, request: LockingCall, names: frozenset[str], deadline: float) -> None:
        """Add a request that waits for `names` until `deadline`, by the loop's clock."""
        self._requests[request] = _Waiting(names, deadline, next(self._turns))
        for name in names:
            self._busy[name] = self._busy.get(name, 0) + 1

    def remove(self, request: LockingCall) -> None:
        """Remove a request."""
        for name in self._requests.pop(request).names:
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]

    def clear(self) -> list[LockingCall]:
        """Remove and return all requests."""
        requests = list(self._requests)
        self._requests.clear()
        self._busy.clear()
        return requests

    def deadline(self, request: LockingCall) -> float:
        """Return the deadline of a request, by the loop's clock."""
        return self._requests[request].deadline

    def next_group(self, limit: int) -> list[LockingCall]:
        """Return the requests to try next: the one whose turn it is, and those that wait for no other locks.

        They have `limit` messages at most. No request is tried before an earlier one that waits for the same lock.
        """
        chosen = self._next_in_turn()
        if chosen is None:
            return []
        wanted = self._requests[chosen].names
        group: list[LockingCall] = []
        count = 0
        blocked: set[str] = set()
        for request, waiting in self._requests.items():
            size = len(request.messages)
            if request is chosen or (
                group
                and waiting.names <= wanted
                and bool(waiting.names) == bool(wanted)
                and blocked.isdisjoint(waiting.names)
                and count + size <= limit
            ):
                group.append(request)
                count += size
                waiting.turn = next(self._turns)
            else:
                blocked |= waiting.names
        return group

    def _next_in_turn(self) -> LockingCall | None:
        chosen: LockingCall | None = None
        turn = 0
        blocked: set[str] = set()
        for request, waiting in self._requests.items():
            if blocked.isdisjoint(waiting.names) and (chosen is None or waiting.turn < turn):
                chosen, turn = request, waiting.turn
            blocked |= waiting.names
        return chosen
