"""Publishes outside transactions: those that come in while others are under way leave together."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from infra.mq.drivers.sql.postgres.errors import KeyBusy
from infra.mq.errors import QueueClosed, QueueError, QueueRejected
from infra.mq.types import Message

LANES = 2
"""How many groups may be under way at a time."""

GROUP_LIMIT = 1000
"""Messages of several calls that leave together at most; a larger call leaves alone."""

Send = Callable[[Sequence[Message], bool], Awaitable[None]]
"""Sends messages; if not patient it raises `KeyBusy` where another transaction holds one of their keys for a while."""


class _Request(NamedTuple):
    messages: Sequence[Message]
    answer: "asyncio.Future[None]"

    @property
    def keys(self) -> set[str]:
        return {it.ordering_key or "" for it in self.messages}


class _Line:
    """Requests that wait for a lane, of which there is a limited number."""

    def __init__(self, lanes: int, send_group: Callable[[list[_Request]], Awaitable[None]]) -> None:
        self._free = lanes
        self._send_group = send_group
        self._waiting: list[_Request] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def add(self, request: _Request) -> None:
        """Have a request sent."""
        self._waiting.append(request)
        if self._free:
            self._free -= 1
            # Nobody's context: the first caller's transaction is not that of the others in its group.
            lane = asyncio.get_running_loop().create_task(self._work_off(), context=contextvars.Context())
            self.tasks.add(lane)
            lane.add_done_callback(self.tasks.discard)

    async def _work_off(self) -> None:
        try:
            while group := self._next_group():
                await self._send_group(group)
        except BaseException as error:
            _fail(self._waiting, QueueClosed(f"the queue's publisher was stopped: {error!r}"))
            self._waiting.clear()
            raise
        finally:
            # At once, and not when the task is known to be done: what is asked for in between needs a lane of its own.
            self._free += 1

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


class Publisher:
    """Joins concurrent publishes: one statement, one COMMIT. A lone one leaves at once.

    A caller that is cancelled leaves its messages to be accepted or not. One whose messages are refused, or have to
    wait for somebody's transaction, keeps nobody else's back.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._line = _Line(LANES, self._send_group)
        self._patient = _Line(1, self._send_patiently)
        self._busy: dict[str, int] = {}
        """How many requests wait patiently for each key."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once `messages` are accepted.

        Raises:
            QueueError: what was wrong with them, or with the queue.
        """
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = _Request(messages, answer)
        if self._busy and not self._busy.keys().isdisjoint(request.keys):
            self._wait_patiently(request)
        else:
            self._line.add(request)
        await answer

    async def close(self, patience: float) -> None:
        """Return when all that was asked for has been answered, or after `patience` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while tasks := self._line.tasks | self._patient.tasks:
                    await asyncio.wait(tasks)

    def _wait_patiently(self, request: _Request) -> None:
        for key in request.keys:
            self._busy[key] = self._busy.get(key, 0) + 1
        self._patient.add(request)

    async def _send_group(self, group: list[_Request]) -> None:
        if len(group) == 1 and not self._busy.keys().isdisjoint(group[0].keys):
            self._wait_patiently(group[0])
            return
        try:
            await self._send_to_the_end(group, patient=False)
        except (QueueRejected, KeyBusy) as error:
            if len(group) > 1:
                for request in group:
                    await self._send_group([request])
            elif isinstance(error, KeyBusy):
                self._wait_patiently(group[0])
            else:
                _fail(group, error)

    async def _send_patiently(self, group: list[_Request]) -> None:
        try:
            await self._send_to_the_end(group, patient=True)
        except (QueueRejected, KeyBusy) as error:
            if len(group) > 1 and isinstance(error, QueueRejected):
                for request in group:
                    await self._send_patiently([request])
                return
            _fail(group, error)
        for request in group:
            for key in request.keys:
                self._busy[key] -= 1
                if not self._busy[key]:
                    del self._busy[key]

    async def _send_to_the_end(self, group: list[_Request], *, patient: bool) -> None:
        """Send and answer; what may be different for a part of the group is raised."""
        try:
            await self._send([message for request in group for message in request.messages], patient)
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
                if not request.answer.done():
                    request.answer.set_result(None)


def _fail(group: list[_Request], error: QueueError) -> None:
    for request in group:
        if not request.answer.done():
            request.answer.set_exception(error)
