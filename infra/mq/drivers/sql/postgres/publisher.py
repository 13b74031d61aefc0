"""Publishes outside transactions: those that come in while others are under way leave together."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from infra.mq.errors import QueueClosed, QueueError, QueueRejected
from infra.mq.types import Message

LANES = 2
"""How many groups may be under way at a time."""

GROUP_LIMIT = 1000
"""Messages of several calls that leave together at most; a larger call leaves alone."""

Send = Callable[[Sequence[Message]], Awaitable[None]]


class _Request(NamedTuple):
    messages: Sequence[Message]
    answer: "asyncio.Future[None]"


class Publisher:
    """Joins concurrent publishes: one statement, one COMMIT. A lone one leaves at once.

    A caller that is cancelled leaves its messages to be accepted or not. One whose messages are refused keeps nobody
    else's back.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[_Request] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._busy = 0
        self.groups = 0
        """How many groups were sent so far."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once `messages` are accepted.

        Raises:
            QueueError: what was wrong with them, or with the queue.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        self._waiting.append(_Request(messages, answer))
        if self._busy < LANES:
            self._busy += 1
            # Nobody's context: the first caller's transaction is not that of the others in its group.
            lane = loop.create_task(self._work_off(), context=contextvars.Context())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        await answer

    async def close(self) -> None:
        """Return when all that was asked for has been answered."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def _work_off(self) -> None:
        try:
            while group := self._next_group():
                await self._send_group(group)
        except BaseException as error:
            for request in self._waiting:
                if not request.answer.done():
                    request.answer.set_exception(QueueClosed(f"the queue's publisher was stopped: {error!r}"))
            self._waiting.clear()
            raise
        finally:
            # At once, and not when the task is known to be done: what is asked for in between needs a lane of its own.
            self._busy -= 1

    def _next_group(self) -> list[_Request]:
        group: list[_Request] = []
        size = 0
        while self._waiting:
            size += len(self._waiting[0].messages)
            if group and size > GROUP_LIMIT:
                break
            request = self._waiting.pop(0)
            if not request.answer.done():
                group.append(request)
        return group

    async def _send_group(self, group: list[_Request]) -> None:
        self.groups += 1
        try:
            await self._send([message for request in group for message in request.messages])
        except QueueRejected as error:
            if len(group) == 1:
                _fail(group, error)
                return
            for request in group:
                await self._send_group([request])
        except QueueError as error:
            _fail(group, error)
        except BaseException:
            for request in group:
                request.answer.cancel()
            raise
        else:
            for request in group:
                if not request.answer.done():
                    request.answer.set_result(None)


def _fail(group: list[_Request], error: QueueError) -> None:
    for request in group:
        if not request.answer.done():
            request.answer.set_exception(error)
