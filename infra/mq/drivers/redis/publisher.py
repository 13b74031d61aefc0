"""Sends messages: one batch under way at a time; what comes meanwhile forms the next."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from infra.mq.drivers.redis.core import OUTDATED, Core
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.registry import Snapshot
from infra.mq.drivers.redis.sending import Batch
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import MessageTooLarge, QueueClosed, QueueRejected
from infra.mq.types import Message

BATCH = 200
"""How many messages at most of different callers share a round trip; more would keep the server from others."""

BATCH_BYTES = 4 * 1024 * 1024
"""How large, in bytes, such a batch gets at most."""

CALL_BYTES = 256 * 1024 * 1024
"""How large, in bytes, the messages of one call may be together: they are accepted in one step."""

LARGE = 256 * 1024
"""Over what size, in bytes, a message is large: of these, scripts read one at a time."""

TIDY_EVERY = 1.0
"""How often, in seconds, a process deletes ids that count no more."""

Call = tuple[Sequence[Message], int, asyncio.Future[None]]


class Publisher:
    """Takes what callers publish to the server."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: deque[Call] = deque()
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._tidied_at: float | None = None
        self._sends_large = False
        """Whether a message came that is so large that scripts are to read few at a time."""

        self._said_to: tuple[Snapshot, int] | None = None
        """The registry and the connection by which the server was last told so."""

        window = core.options.dedupe_window
        self._window = microseconds(window)
        # Longer than they count: until then somebody publishes, and says it again, or nobody does.
        self._kept_for = round(window * 1500)

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
        limit, sizes = self._core.max_body, [len(it.body) for it in messages]
        total, largest = sum(sizes), max(sizes)
        if largest > limit:
            message = messages[sizes.index(largest)]
            raise MessageTooLarge(f"message {message.id} has {largest} bytes; Redis takes at most {limit} here")
        if largest > LARGE:
            self._sends_large = True
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
        batch = Batch(messages, core.serials.take(microseconds(now), len(messages)), now)
        while True:
            snapshot = core.catalog.snapshot
            if self._sends_large and self._said_to != (snapshot, link.connections):
                await link.ask("HSET", core.keys.of("meta"), "large", 1)
                self._said_to = (snapshot, link.connections)
            if await self._send_by(link, snapshot, batch) != OUTDATED:
                return
            # It may have been emptied: then nobody has said how long it is to keep ids.
            self._tidied_at = None
            await core.catalog.load(snapshot)

    async def _send_by(self, link: Link, snapshot: Snapshot, batch: Batch) -> Any:  # noqa: ANN401 - what the script says
        core = self._core
        request = batch.request(snapshot, core.keys)
        asked_at = core.clock.monotonic()
        tidy = bool(batch.ids) and self._is_untidy(asked_at)
        kept_for = self._kept_for if tidy else ""
        arguments = (snapshot.version, core.now(), self._window, kept_for, *request.arguments)
        answer = await link.run(request.script, request.keys, *arguments)
        if tidy and answer != OUTDATED:
            # What is left is forgotten with the next publish: so it never grows, whatever the rate.
            self._tidied_at = None if answer else asked_at
        return answer

    def _is_untidy(self, now: float) -> bool:
        """Whether it is time to delete ids that count no more; each time costs as much as a message."""
        return self._tidied_at is None or now - self._tidied_at >= min(TIDY_EVERY, self._core.options.dedupe_window / 4)


def _again(error: Exception) -> Exception:
    """Return an error of the same kind for one of many callers: each traceback is its own."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
