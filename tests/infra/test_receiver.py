"""The receiver of broadcasts that all drivers share, over a source that the test controls."""

import asyncio
from collections import deque

import pytest

from infra.clock import FakeClock
from infra.mq import QueueClosed, QueueUnavailable
from infra.mq.owner import QueueOwner
from infra.mq.receiver import SourceReceiver

Answer = tuple[list[bytes], bool] | Exception


class ScriptedSource:
    """A source that returns or raises the next answer, and nothing once there are none left."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = deque(answers)
        self.reads = 0
        self.watching: set[asyncio.Event] = set()

    async def read(self) -> tuple[list[bytes], bool]:
        self.reads += 1
        answer = self.answers.popleft() if self.answers else ([], False)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, changed: asyncio.Event) -> None:
        self.watching.add(changed)

    def unwatch(self, changed: asyncio.Event) -> None:
        self.watching.discard(changed)

    def change(self, answer: Answer) -> None:
        """Add an answer, and notify the receiver."""
        self.answers.append(answer)
        for changed in self.watching:
            changed.set()


def receiver_of(source: ScriptedSource, clock: FakeClock | None = None) -> SourceReceiver:
    owner = QueueOwner()
    owner.enter()
    return SourceReceiver(source, clock or FakeClock(), owner, lambda _: None)


async def test_receive_waits_for_a_change_of_the_source() -> None:
    source, clock = ScriptedSource(), FakeClock()
    receiving = asyncio.create_task(receiver_of(source, clock).receive(60))
    await clock.settle()
    assert not receiving.done()
    source.change(([b"a", b"b"], False))
    assert await receiving == ([b"a", b"b"], False)


async def test_receive_without_wait_reads_once() -> None:
    source = ScriptedSource()
    assert await receiver_of(source).receive(0) == ([], False)
    assert source.reads == 1


async def test_gap_of_the_source_is_reported_once() -> None:
    receiver = receiver_of(ScriptedSource(([], True), ([b"a"], False)))
    assert await receiver.receive(60) == ([], True)
    assert await receiver.receive(60) == ([b"a"], False)


async def test_failed_read_is_reported_as_a_gap_by_the_next_call() -> None:
    receiver = receiver_of(ScriptedSource(QueueUnavailable("unreachable"), ([b"a"], False), ([b"b"], False)))
    with pytest.raises(QueueUnavailable):
        await receiver.receive(60)
    assert await receiver.receive(60) == ([b"a"], True)
    assert await receiver.receive(60) == ([b"b"], False)


async def test_wake_ends_one_wait() -> None:
    clock = FakeClock()
    receiver = receiver_of(ScriptedSource(), clock)
    receiver.wake()
    assert await receiver.receive(60) == ([], False)
    receiving = asyncio.create_task(receiver.receive(60))
    await clock.settle()
    assert not receiving.done()
    receiver.wake()
    assert await receiving == ([], False)


async def test_closed_receiver_ends_its_wait_with_an_error() -> None:
    source, clock = ScriptedSource(), FakeClock()
    receiver = receiver_of(source, clock)
    receiving = asyncio.create_task(receiver.receive(60))
    await clock.settle()
    await receiver.close()
    with pytest.raises(QueueClosed, match="this broadcast receiver is closed"):
        await receiving
    assert not source.watching
