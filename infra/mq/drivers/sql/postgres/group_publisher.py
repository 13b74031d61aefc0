"""Publishing outside of transactions, in groups: concurrent calls share a statement and a COMMIT."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

from infra.mq.batching import take_batch
from infra.mq.drivers.sql.postgres.errors import KeyBusy
from infra.mq.drivers.sql.postgres.waiting_publishes import LockingCall, WaitingPublishes
from infra.mq.errors import QueueClosed, QueueError, QueueRejected
from infra.mq.types import Message

LANES = 2
"""The maximum number of groups in flight."""

GROUP_LIMIT = 1000
"""The maximum number of messages in a group of several calls; a larger call forms a group by itself."""

GROUP_BYTES = 16 * 1024 * 1024
"""The maximum size of their bodies, in bytes."""

GROUP_PATIENCE = 0.05
"""Seconds that a group waits for a lock; then the calls that need the lock wait for it separately."""

PART_PATIENCE = 0.01
"""Seconds that a part of such a group waits, while the calls that need the lock are searched for."""

ATTEMPT_PATIENCE = 0.25
"""Seconds that an attempt of separately waiting calls takes at most; with several groups of them, `GROUP_PATIENCE`."""

Send = Callable[[Sequence[Message], float], Awaitable[None]]
"""Publishes messages; raises `KeyBusy` if another transaction holds a lock for longer than the given seconds."""


class GroupPublisher:
    """A publisher that combines concurrent calls into one statement and one COMMIT; a single call is sent at once.

    The messages of a cancelled caller may be accepted or not. A call whose messages are rejected delays no other call.
    A call that waits for another transaction delays only calls with the same ordering key or the same id; it fails with
    `KeyBusy` after `patience` seconds.
    """

    def __init__(self, send: Send, patience: float) -> None:
        self._send = send
        self._patience = patience
        self._queued: deque[LockingCall] = deque()
        self._free_lanes = LANES
        self._apart = WaitingPublishes()
        self._waiter: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for another transaction."""
        return len(self._apart)

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once `messages` are accepted.

        Raises:
            QueueError: the messages were rejected, or the queue failed.
        """
        request = LockingCall(messages, sum([len(it.body) for it in messages]))
        if self._apart and self._apart.concerns(request):
            self._wait_apart(request, request.names & self._apart.names)
        else:
            self._queued.append(request)
            if self._free_lanes:
                self._free_lanes -= 1
                self._start(self._work_off())
        await request.answer

    async def close(self, patience: float) -> None:
        """Wait until all calls are answered, or for `patience` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In an empty context: the first caller's transaction must not be ambient for the rest of the group.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work_off(self) -> None:
        try:
            while group := take_batch(self._queued, most=GROUP_LIMIT, most_bytes=GROUP_BYTES):
                await self._send_group(group, GROUP_PATIENCE)
        except BaseException as error:
            _fail(self._queued, QueueClosed(f"publishing to the queue was stopped: {error!r}"))
            self._queued.clear()
            raise
        finally:
            # Not in a done callback: a call that arrives before the callback runs must find the lane free.
            self._free_lanes += 1

    async def _send_group(self, group: list[LockingCall], patience: float) -> None:
        """Send and answer a group; bisect it to find the calls that are rejected or have to wait."""
        if self._apart:
            for request in [it for it in group if self._apart.concerns(it)]:
                group.remove(request)
                self._wait_apart(request, request.names & self._apart.names)
        if not group:
            return
        try:
            await self._send_whole(group, patience)
        except (QueueRejected, KeyBusy) as error:
            if len(group) > 1:
                middle = len(group) // 2
                for half in (group[:middle], group[middle:]):
                    await self._send_group(half, PART_PATIENCE)
            elif isinstance(error, KeyBusy):
                self._wait_apart(group[0], group[0].names_of(error.held))
            else:
                _fail(group, error)

    async def _send_whole(self, group: list[LockingCall], patience: float) -> None:
        """Send and answer a group; raise the errors that may concern only a part of the group."""
        try:
            await self._send([message for request in group for message in request.messages], patience)
        except (QueueRejected, KeyBusy):
            raise
        except QueueError as error:
            _fail(group, error)
        except BaseException:
            for request in group:
                request.answer.cancel()
            raise
        else:
            for request in group:
                request.succeed()

    # --- calls that wait for other transactions -----------------------------------------------------------------------

    def _wait_apart(self, request: LockingCall, names: frozenset[str]) -> None:
        loop = asyncio.get_running_loop()
        self._apart.add(request, names, loop.time() + self._patience)
        if self._waiter is None or self._waiter.done():
            self._waiter = self._start(self._try_in_turn())

    async def _try_in_turn(self) -> None:
        try:
            while group := self._apart.next_group(GROUP_LIMIT):
                await self._try(group)
        except BaseException as error:
            _fail(self._apart.clear(), QueueClosed(f"publishing to the queue was stopped: {error!r}"))
            raise

    async def _try(self, group: list[LockingCall]) -> None:
        """Try a group that waits for the same locks; answer calls that succeed or have waited too long."""
        loop = asyncio.get_running_loop()
        alone = len(group) == len(self._apart)
        try:
            if pending := [it for it in group if not it.answer.done()]:
                await self._send_whole(pending, min(ATTEMPT_PATIENCE if alone else GROUP_PATIENCE, self._patience))
        except QueueRejected as error:
            if len(group) > 1:
                for request in group:
                    await self._try([request])
                return
            _fail(group, error)
        except KeyBusy as error:
            late = [it for it in group if self._apart.deadline(it) <= loop.time()]
            _fail(late, error)
        for request in group:
            if request.answer.done():
                self._apart.remove(request)


def _fail(group: Iterable[LockingCall], error: QueueError) -> None:
    for request in group:
        request.fail(error)
