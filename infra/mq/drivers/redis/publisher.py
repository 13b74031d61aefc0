"""Sends messages: one batch under way at a time; what comes meanwhile forms the next."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.registry import Route, Snapshot
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import keep, microseconds
from infra.mq.errors import MessageTooLarge, QueueClosed, QueueRejected
from infra.mq.types import Message

BATCH = 200
"""How many messages at most of different callers share a round trip; more would keep the server from others."""

BATCH_BYTES = 4 * 1024 * 1024
"""How large, in bytes, such a batch gets at most."""

CALL_BYTES = 256 * 1024 * 1024
"""How large, in bytes, the messages of one call may be together: they are accepted in one step."""

TIDY_EVERY = 1.0
"""How often, in seconds, a process deletes ids that count no more."""

Receivers = tuple[list[list[int]], list[dict[str, list[int]]]]
"""Where the numbers of an event's messages are gathered: for unordered subscriptions, and by key for ordered ones."""

Call = tuple[Sequence[Message], int, asyncio.Future[None]]


class Publisher:
    """Takes what callers publish to the server."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: deque[Call] = deque()
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._tidied_at: float | None = None
        self._keys = [core.keys.of(name) for name in ("meta", "dedupe", "sleepers", "plans", "planned")]

    async def publish(self, messages: Sequence[Message]) -> None:
        """As `MessageQueue.publish`."""
        size = self._size_of(messages)
        if not self._busy:
            # Alone: it leaves at once, and in the caller's own task.
            self._busy = True
            try:
                await self._send(messages)
            finally:
                self._go_on()
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, size, done))
        await done

    def close(self) -> None:
        """Refuse what still waits to be sent."""
        while self._waiting:
            done = self._waiting.popleft()[2]
            if not done.done():
                done.set_exception(QueueClosed("the queue was closed before this was sent"))

    def _size_of(self, messages: Sequence[Message]) -> int:
        limit, total = self._core.options.max_body, 0
        for message in messages:
            size = len(message.body)
            total += size
            if size > limit:
                raise MessageTooLarge(f"message {message.id} has {size} bytes; Redis takes at most {limit} here")
        if total > CALL_BYTES:
            raise QueueRejected(
                f"{len(messages)} messages of {total} bytes together are too many: publish fewer at once"
            )
        return total

    def _go_on(self) -> None:
        if self._waiting:
            self._task = asyncio.ensure_future(self._send_waiting())
        else:
            self._busy = False

    async def _send_waiting(self) -> None:
        # In a task of its own: no caller's cancellation ends what is sent for others too.
        try:
            while self._waiting:
                await self._send_batch(self._take_batch())
        finally:
            self._busy = False
            if self._waiting:
                self._busy = True
                self._go_on()

    def _take_batch(self) -> list[Call]:
        batch = [self._waiting.popleft()]
        count, size = len(batch[0][0]), batch[0][1]
        while self._waiting:
            messages, more, _ = self._waiting[0]
            count, size = count + len(messages), size + more
            if count > BATCH or size > BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send_batch(self, batch: list[Call]) -> None:
        try:
            await self._send([message for messages, _, _ in batch for message in messages])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what each caller must know
            for _, _, done in batch:
                if not done.done():
                    done.set_exception(_again(error))
            return
        for _, _, done in batch:
            if not done.done():
                done.set_result(None)

    async def _send(self, messages: Sequence[Message]) -> None:
        core = self._core
        link = core.link("publish")
        await core.measure(link)
        now = core.time()
        stamp = microseconds(now)
        bodies: list[str | bytes] = []
        for message in messages:
            serial = core.serials.take(stamp)
            bodies += (serial, keep(message, serial))
        while True:
            snapshot = core.catalog.snapshot
            if await self._send_by(link, snapshot, messages, bodies, now) != OUTDATED:
                return
            # It may have been emptied: then nobody has said how long it is to keep ids.
            self._tidied_at = None
            await core.catalog.load(snapshot)

    async def _send_by(
        self, link: Link, snapshot: Snapshot, messages: Sequence[Message], bodies: Sequence[str | bytes], now: float
    ) -> Any:  # noqa: ANN401 - what the script answers
        plan = _Plan(snapshot, messages, now)
        core, window = self._core, self._core.options.dedupe_window
        keys = list(self._keys)
        for route in plan.routes:
            keys += route.keys
        asked_at = core.clock.monotonic()
        tidy = bool(plan.ids) and self._is_untidy(asked_at)
        answer = await link.run(
            scripts().send if plan.simple else scripts().publish,
            keys,
            snapshot.version,
            core.now(),
            microseconds(window),
            # Longer than they count: until then somebody publishes, and says it again, or nobody does.
            round(window * 1500) if tidy else "",
            plan.packed(),
            *bodies,
            *plan.ids,
        )
        if tidy and answer != OUTDATED:
            self._tidied_at = asked_at
        return answer

    def _is_untidy(self, now: float) -> bool:
        """Whether it is time to delete ids that count no more; each time costs as much as a message."""
        return self._tidied_at is None or now - self._tidied_at >= min(TIDY_EVERY, self._core.options.dedupe_window / 4)


class _Plan:
    """Which message goes where."""

    def __init__(self, snapshot: Snapshot, messages: Sequence[Message], now: float) -> None:
        self.routes: list[Route] = []
        self.ids: list[str] = []
        """Those of messages that are accepted only once."""

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
                self.ids.append(message.id)
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

    @property
    def simple(self) -> bool:
        """Whether all of it goes to unordered subscriptions, and at once."""
        return not (self._ordered or self._delayed)

    def packed(self) -> bytes:
        """Return it as the script reads it."""
        targets: list[tuple[bool, list[Any] | bool, bool, str]] = []
        for route in self.routes:
            kept = route.kept
            if kept.ordered:
                targets.append((True, list(self._ordered.get(kept.sid, {}).items()), kept.paused, kept.sid))
            else:
                indexes = self._unordered.get(kept.sid, [])
                targets.append((False, len(indexes) == self._count or indexes, kept.paused, kept.sid))
        return msgspec.msgpack.encode((self._count, targets, self._identified, self._delayed))

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


def _again(error: Exception) -> Exception:
    """Return an error of the same kind for one of many callers: each traceback is its own."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
