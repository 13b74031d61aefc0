"""Publishing: one request is in flight at a time, and concurrent calls share the next one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from infra.mq.batching import PublishCall, take_batch
from infra.mq.bodies import refuse_larger
from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.publish_batch import PublishBatch
from infra.mq.drivers.redis.registry import RegistrySnapshot
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import QueueClosed, QueueRejected
from infra.mq.types import Message

BATCH = 200
"""The largest number of messages of several calls in one request; more would block the server for other clients."""

BATCH_BYTES = 4 * 1024 * 1024
"""The largest size, in bytes, of the messages of several calls in one request."""

CALL_BYTES = 256 * 1024 * 1024
"""The largest size, in bytes, of all messages of one call, which one script accepts."""

LARGE = 256 * 1024
"""The size, in bytes, above which a message is large: scripts read large messages one at a time."""

TIDY_EVERY = 1.0
"""Seconds between two deletions by a process of ids older than the dedupe window."""


class RedisPublisher:
    """Sends published messages to the server, in the order of the calls."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: deque[PublishCall] = deque()
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._tidied_at: float | None = None
        self._sends_large = False
        """Whether this process has published a large message: it then marks the queue as having large ones."""

        self._marked_for: tuple[RegistrySnapshot, int] | None = None
        """The registry and the connection number at which it has last set that mark."""

        window = core.options.dedupe_window
        self._window = microseconds(window)
        # In milliseconds, half a window longer than ids count. Each deletion extends it while messages are published.
        self._kept_for = round(window * 1500)

    async def publish(self, messages: Sequence[Message]) -> None:
        """Implement `MessageQueue.publish`."""
        size = self._size_of(messages)
        if not self._busy:
            # Without concurrent calls no other task is needed.
            self._busy = True
            try:
                await self._send(messages)
            finally:
                self._continue()
            return
        call = PublishCall(messages, size)
        self._waiting.append(call)
        await call.answer

    def close(self) -> None:
        """Raise QueueClosed in all calls whose messages were not sent."""
        while self._waiting:
            self._waiting.popleft().fail(QueueClosed("the queue was closed before the messages were sent"))

    def _size_of(self, messages: Sequence[Message]) -> int:
        limit, sizes = self._core.max_body, [len(it.body) for it in messages]
        total, largest = sum(sizes), max(sizes)
        if largest > limit:
            refuse_larger(messages, limit)
        if largest > LARGE:
            self._sends_large = True
        if total > CALL_BYTES:
            raise QueueRejected(
                f"{len(messages)} messages of {total} bytes together exceed {CALL_BYTES}: publish fewer in one call"
            )
        return total

    def _continue(self) -> None:
        if self._waiting:
            self._task = asyncio.ensure_future(self._send_waiting())
        else:
            self._busy = False

    async def _send_waiting(self) -> None:
        # In a task of its own, so that the cancellation of one caller does not cancel the messages of others.
        try:
            while self._waiting:
                if batch := take_batch(self._waiting, most=BATCH, most_bytes=BATCH_BYTES):
                    await self._send_batch(batch)
        finally:
            self._busy = False
            if self._waiting:
                self._busy = True
                self._continue()

    async def _send_batch(self, batch: list[PublishCall]) -> None:
        try:
            await self._send([message for call in batch for message in call.messages])
        except Exception as error:  # noqa: BLE001 - each caller gets the error
            for call in batch:
                call.fail(_copy_of(error))
            return
        for call in batch:
            call.succeed()

    async def _send(self, messages: Sequence[Message]) -> None:
        core = self._core
        link = core.link("publish")
        await core.measure(link)
        now = core.time()
        batch = PublishBatch(messages, core.serials.take(microseconds(now), len(messages)), now)
        while True:
            snapshot = core.registry.snapshot
            if self._sends_large and self._marked_for != (snapshot, link.connections):
                await link.query("HSET", core.keys.of("meta"), "large", 1)
                self._marked_for = (snapshot, link.connections)
            if await self._send_by(link, snapshot, batch) != OUTDATED:
                return
            # The server may have been flushed, and with it the expiry of its ids.
            self._tidied_at = None
            await core.registry.load(snapshot)

    async def _send_by(self, link: Link, snapshot: RegistrySnapshot, batch: PublishBatch) -> Any:  # noqa: ANN401 - the answer of a script
        core = self._core
        request = batch.request(snapshot, core.keys)
        asked_at = core.clock.monotonic()
        tidy = bool(batch.ids) and self._is_untidy(asked_at)
        kept_for = self._kept_for if tidy else ""
        arguments = (snapshot.version, core.now(), self._window, kept_for, *request.arguments)
        answer = await link.run(request.script, request.keys, *arguments)
        if tidy and answer != OUTDATED:
            # If old ids are left, the next publish goes on, so that their number is bounded at any rate.
            self._tidied_at = None if answer else asked_at
        return answer

    def _is_untidy(self, now: float) -> bool:
        """Return whether to delete old ids with this publish, which costs as much as a message."""
        return self._tidied_at is None or now - self._tidied_at >= min(TIDY_EVERY, self._core.options.dedupe_window / 4)


def _copy_of(error: Exception) -> Exception:
    """Return a copy of an error, so that each caller has a traceback of its own."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
