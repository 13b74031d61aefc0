"""Requests for the scripts that accept messages."""

from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.connection import Argument
from infra.mq.drivers.redis.keys import WAITING, Keys
from infra.mq.drivers.redis.registry import RegistrySnapshot, Route
from infra.mq.drivers.redis.scripts import Script, scripts
from infra.mq.drivers.redis.wire import microseconds, pack_message
from infra.mq.limits import RESENT_FOR, RESENT_IDS
from infra.mq.types import Message

Receivers = tuple[list[list[int]], list[dict[str, list[int]]]]
"""Lists that collect the numbers of an event's messages: per unordered subscription, and per key of an ordered one."""


class ScriptCall(msgspec.Struct, frozen=True):
    """A script, its keys, and its arguments after those that every publish has."""

    script: Script
    keys: Sequence[str]
    arguments: list[Argument]


class PublishBatch:
    """Messages that one script accepts together, each with its serial."""

    def __init__(self, messages: Sequence[Message], serials: Sequence[str], now: float) -> None:
        self._messages = messages
        self._now = now
        self._contents: list[Argument] = []
        self.ids: list[Argument] = []
        """Event and id of each message with `dedupe`."""

        self._since: list[tuple[int, int]] = []
        """For each message with `accepted_since`: the number of its id in `ids`, and that time in microseconds."""

        self._event: str | None = messages[0].event
        """The event of all messages if it is the same and none has a due time; else None."""

        self._take(serials)

    def _take(self, serials: Sequence[str]) -> None:
        add, add_id, event = self._contents.append, self.ids.append, self._event
        for serial, message in zip(serials, self._messages, strict=True):
            add(pack_message(message, serial))
            if message.dedupe:
                add_id(f"{message.event}\0{message.id}")
                if message.accepted_since is not None:
                    self._since.append((len(self.ids), microseconds(message.accepted_since)))
            if message.event != event or message.due_at is not None:
                self._event = None

    def request(self, snapshot: RegistrySnapshot, keys: Keys) -> ScriptCall:
        """Return the request by which the messages are accepted, for one version of the registry."""
        count = len(self._messages)
        if self._event is not None and len(self.ids) in {0, count} and not self._since:
            targets = snapshot.send_targets(self._event)
            if targets is not None:
                arguments = [count, *targets.targets, *self._contents, *self.ids]
                return ScriptCall(scripts().send_one if count == 1 else scripts().send, targets.keys, arguments)
        routing = _Routing(snapshot, self._messages, self._now)
        names = [keys.of(it) for it in ("meta", "accepted", "dedupe", WAITING, "plans", "planned", "resent")]
        names += [key for route in routing.routes for key in route.keys]
        since = msgspec.msgpack.encode((RESENT_IDS, RESENT_FOR, self._since)) if self._since else b""
        return ScriptCall(scripts().publish, names, [routing.packed(), since, *self._contents, *self.ids])


class _Routing:
    """The subscriptions that receive each message, as `publish.lua` reads it."""

    def __init__(self, snapshot: RegistrySnapshot, messages: Sequence[Message], now: float) -> None:
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
        """Return the routing in packed form."""
        targets: list[tuple[bool, list[Any] | bool, bool, str]] = []
        for route in self.routes:
            subscription = route.subscription
            if subscription.ordered:
                targets.append(
                    (True, list(self._ordered.get(subscription.sid, {}).items()), subscription.paused, subscription.sid)
                )
            else:
                targets.append(
                    (
                        False,
                        self._all_or(self._unordered.get(subscription.sid, [])),
                        subscription.paused,
                        subscription.sid,
                    )
                )
        return msgspec.msgpack.encode((self._count, targets, self._all_or(self._identified), self._delayed))

    def _all_or(self, indexes: list[int]) -> list[int] | bool:
        return len(indexes) == self._count or indexes

    def _receivers(self, routes: Sequence[Route]) -> Receivers:
        for route in routes:
            self._number(route)
        unordered = [
            self._unordered.setdefault(it.subscription.sid, []) for it in routes if not it.subscription.ordered
        ]
        return unordered, [
            self._ordered.setdefault(it.subscription.sid, {}) for it in routes if it.subscription.ordered
        ]

    def _delay(self, index: int, message: Message, due_at: int, routes: Sequence[Route]) -> None:
        if not routes:
            return
        numbers = [self._number(it) for it in routes]
        self._delayed.append((index, due_at, message.id, [it.subscription.sid for it in routes], numbers))

    def _number(self, route: Route) -> int:
        sid = route.subscription.sid
        number = self._numbers.get(sid)
        if number is None:
            number = self._numbers[sid] = len(self.routes)
            self.routes.append(route)
        return number
