"""Concurrent calls of `publish` that share a request to the server."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from infra.mq.types import Message

C = TypeVar("C", bound="PublishCall")


class PublishCall:
    """The messages of one call of `publish`, the size of their bodies in bytes, and the future of the call's answer."""

    __slots__ = ("answer", "messages", "size")

    def __init__(self, messages: Sequence[Message], size: int) -> None:
        self.messages = messages
        self.size = size
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def succeed(self) -> None:
        """End the call without an error, unless it was cancelled."""
        if not self.answer.done():
            self.answer.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the call with `error`, unless it was cancelled."""
        if not self.answer.done():
            self.answer.set_exception(error)


def take_batch(waiting: deque[C], *, most: int, most_bytes: int) -> list[C]:
    """Remove the first calls, at least one and as many as fit; return those that were not cancelled.

    The messages of several calls are at most `most`, and their bodies at most `most_bytes` bytes.
    """
    batch: list[C] = []
    count = size = taken = 0
    for call in waiting:
        count += len(call.messages)
        size += call.size
        if batch and (count > most or size > most_bytes):
            break
        taken += 1
        if not call.answer.done():
            batch.append(call)
    for _ in range(taken):
        waiting.popleft()
    return batch
