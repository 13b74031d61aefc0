"""How messages are told to the scripts that accept them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Argument
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import Script, scripts
from infra.mq.drivers.redis.wire import keep, microseconds
from infra.mq.limits import RESENT_FOR, RESENT_IDS
from infra.mq.types import Message

Receivers = tuple[list[list[int]], list[dict[str, list[int]]]]
"""Where the numbers of an event's messages are gathered: for unordered subscriptions, and by key for ordered ones."""


class Request(msgspec.Struct, frozen=True):
    """What to run, on what, and what to tell it beside what every publish says."""

    script: Script
    keys: Sequence[str]
    arguments: list[Argument]


class Batch:
    """Messages that are accepted in one step, each under a serial of its own."""

    def __init__(self, messages: Sequence[Message], serials: Sequence[str], now: float) -> None:
        self._messages = messages
        self._now = now
        self._contents: list[Argument] = []
        self.ids: list[Argument] = []
        """Events and ids of messages that are accepted only once."""

        self._since: list[tuple[int, int]] = []
        """The number of an id, and since when its message exists, for each that may be sent again."""

        self._event: str | None = messages[0].event
        """What all of them are, if they are the same, and none is delayed."""

        self._take(serials)

    def _take(self, serials: Sequence[str]) -> None:
        tell, tell_id, event = self._contents.append, self.ids.append, self._event
        for serial, message in zip(serials, self._messages, strict=True):
            tell(keep(message, serial))
            if message.dedupe:
                tell_id(f"{message.event}\0{message.id}")
                if message.accepted_since is not None:
                    self._since.append((len(self.ids), microseconds(message.accepted_since)))
            if message.event != event or message.due_at is not None:
                self._event = None

    def request(self, snapshot: Snapshot, keys: Keys) -> Request:
        """Return how it is accepted, as far as this copy of the registry knows."""
        count = len(self._messages)
        if self._event is not None and len(self.ids) in {0, count} and not self._since:
            straight = snapshot.straight(self._event)
            if straight is not None:
                arguments = [count, *straight.targets, *self._contents, *self.ids]
                return Request(scripts().send_one if count == 1 else scripts().send, straight.keys, arguments)
        plan = _Plan(snapshot, self._messages, self._now)
        names = [keys.of(it) for it in ("meta", "accepted", "dedupe", "sleepers", "plans", "planned", "resent")]
        names += [key for route in plan.routes for key in route.keys]
        since = msgspec.msgpack.encode((RESENT_IDS, RESENT_FOR, self._since)) if self._since else b""
        return Request(scripts().publish, names, [plan.packed(), since, *self._contents, *self.ids])


class _Plan:
    """Which message goes where."""

    def __init__(self, snapshot: Snapshot, messages: Sequence[Message], now: float) -> None:
        self.routes: list[Route] = []
        self._count = len(messages)
        self._numbers: dict[str, int] = {}
        self._unordered: dict[str, list[int]] = {}
        self._ordered: dict[str, dict[str, list[int]]] = {}
        self._identified: list[int] = []
        self._delayed: list[tuple[int, int, str, list[str], list[int]]] = []
        receivers: dict[str, Receivers] = {}
        for index, message in enumerate(messages, 1):
            if message.dedupe:
                self._identified.append(index)
            if message.due_at is not None and message.due_at > now:
                self._delay(index, message, microseconds(message.due_at), snapshot.routes.get(message.event, ()))
                continue
            found = receivers.get(message.event)
            if found is None:
                found = receivers[message.event] = self._receivers(snapshot.routes.get(message.event, ()))
            for unordered in found[0]:
                unordered.append(index)
            for mailboxes in found[1]:
                mailboxes.setdefault(message.ordering_key or "", []).append(index)

    def packed(self) -> bytes:
        """Return it as the script reads it."""
        targets: list[tuple[bool, list[Any] | bool, bool, str]] = []
        for route in self.routes:
            kept = route.kept
            if kept.ordered:
                targets.append((True, list(self._ordered.get(kept.sid, {}).items()), kept.paused, kept.sid))
            else:
                targets.append((False, self._all_or(self._unordered.get(kept.sid, [])), kept.paused, kept.sid))
        return msgspec.msgpack.encode((self._count, targets, self._all_or(self._identified), self._delayed))

    def _all_or(self, indexes: list[int]) -> list[int] | bool:
        return len(indexes) == self._count or indexes

    def _receivers(self, routes: Sequence[Route]) -> Receivers:
        for route in routes:
            self._number(route)
        unordered = [self._unordered.setdefault(it.kept.sid, []) for it in routes if not it.kept.ordered]
        return unordered, [self._ordered.setdefault(it.kept.sid, {}) for it in routes if it.kept.ordered]

    def _delay(self, index: int, message: Message, due_at: int, routes: Sequence[Route]) -> None:
        if not routes:
            return
        numbers = [self._number(it) for it in routes]
        self._delayed.append((index, due_at, message.id, [it.kept.sid for it in routes], numbers))

    def _number(self, route: Route) -> int:
        sid = route.kept.sid
        number = self._numbers.get(sid)
        if number is None:
            number = self._numbers[sid] = len(self.routes)
            self.routes.append(route)
        return number
