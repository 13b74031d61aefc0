"""Calls of `publish` that share a request."""

from collections import deque

import pytest

from infra.mq import Message, QueueUnavailable
from infra.mq.batching import PublishCall, take_batch


def calls(*sizes: int) -> deque[PublishCall]:
    """Return a call of one message for each size of a body."""
    messages = [Message(id=f"m{size}", event="Happened", body=bytes(size), published_at=1.0) for size in sizes]
    return deque(PublishCall([it], len(it.body)) for it in messages)


def sizes_of(batch: list[PublishCall]) -> list[int]:
    return [call.size for call in batch]


async def test_batch_has_a_bounded_number_of_messages() -> None:
    waiting = calls(1, 2, 3)
    assert sizes_of(take_batch(waiting, most=2, most_bytes=100)) == [1, 2]
    assert sizes_of(take_batch(waiting, most=2, most_bytes=100)) == [3]
    assert not waiting


async def test_batch_has_a_bounded_number_of_bytes() -> None:
    waiting = calls(60, 40, 1)
    assert sizes_of(take_batch(waiting, most=10, most_bytes=100)) == [60, 40]
    assert sizes_of(take_batch(waiting, most=10, most_bytes=100)) == [1]


async def test_call_above_the_bounds_is_a_batch_of_its_own() -> None:
    waiting = calls(101, 1)
    assert sizes_of(take_batch(waiting, most=10, most_bytes=100)) == [101]
    assert sizes_of(take_batch(waiting, most=10, most_bytes=100)) == [1]


async def test_cancelled_call_is_not_sent() -> None:
    waiting = calls(1, 2)
    waiting[0].answer.cancel()
    assert sizes_of(take_batch(waiting, most=10, most_bytes=100)) == [2]


async def test_call_is_answered_once() -> None:
    [call] = calls(1)
    call.fail(QueueUnavailable("no"))
    call.succeed()
    with pytest.raises(QueueUnavailable, match="no"):
        await call.answer
