"""Publishes that wait for another transaction to end, each for an ordering key or an id that it holds."""

import asyncio
import itertools
from collections.abc import Sequence
from functools import cached_property

from infra.mq.drivers.sql.postgres.errors import Held
from infra.mq.types import Message


class PublishRequest:
    """The messages of one call, and the future that answers it.

    What it may have to wait for has names: `key` and `id` with the event, for another event's messages without a key,
    or with the same id, need not wait for the same.
    """

    def __init__(self, messages: Sequence[Message], answer: "asyncio.Future[None]") -> None:
        self.messages = messages
        self.answer = answer
        self.size = len(messages[0].body) if len(messages) == 1 else sum([len(it.body) for it in messages])
        """The bytes of the bodies."""

    @cached_property
    def names(self) -> frozenset[str]:
        """All that it may have to wait for."""
        return self.names_of("keys") | self.names_of("ids")

    def names_of(self, held: Held) -> frozenset[str]:
        """Return what it has to wait for where another transaction holds keys, ids or the registry."""
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
    """Requests in the order in which they came; those that wait for the same are tried together and in order."""

    def __init__(self) -> None:
        self._requests: dict[PublishRequest, _Waiting] = {}
        self._turns = itertools.count()
        self._busy: dict[str, int] = {}
        """How many requests wait for each name."""

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def names(self) -> frozenset[str]:
        """All that is waited for."""
        return frozenset(self._busy)

    def concerns(self, request: PublishRequest) -> bool:
        """Whether `request` would have to wait behind another one."""
        return bool(self._busy) and not self._busy.keys().isdisjoint(request.names)

    def add(self, request: PublishRequest, names: frozenset[str], deadline: float) -> None:
        """Let a request wait for `names` until `deadline`, by the loop's clock."""
        self._requests[request] = _Waiting(names, deadline, next(self._turns))
        for name in names:
            self._busy[name] = self._busy.get(name, 0) + 1

    def remove(self, request: PublishRequest) -> None:
        """Forget a request."""
        for name in self._requests.pop(request).names:
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]

    def clear(self) -> list[PublishRequest]:
        """Forget and return all."""
        requests = list(self._requests)
        self._requests.clear()
        self._busy.clear()
        return requests

    def deadline(self, request: PublishRequest) -> float:
        """Return until when a request waits, by the loop's clock."""
        return self._requests[request].deadline

    def next_group(self, limit: int) -> list[PublishRequest]:
        """Return what to try next: the request whose turn it is, and those that wait for nothing else.

        They have `limit` messages at most. None is tried before an earlier one that waits for the same.
        """
        chosen = self._next_in_turn()
        if chosen is None:
            return []
        wanted = self._requests[chosen].names
        group: list[PublishRequest] = []
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

    def _next_in_turn(self) -> PublishRequest | None:
        chosen: PublishRequest | None = None
        turn = 0
        blocked: set[str] = set()
        for request, waiting in self._requests.items():
            if blocked.isdisjoint(waiting.names) and (chosen is None or waiting.turn < turn):
                chosen, turn = request, waiting.turn
            blocked |= waiting.names
        return chosen
