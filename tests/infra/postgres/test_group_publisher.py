"""The group publisher: publishes outside of transactions are sent in groups, and none is lost."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from infra.mq import Message, QueueRejected, QueueUnavailable
from infra.mq.drivers.sql.postgres import group_publisher
from infra.mq.drivers.sql.postgres.errors import KeyBusy
from infra.mq.drivers.sql.postgres.group_publisher import GroupPublisher
from tests.infra.mq.acting import message


class RecordingQueue:
    """Records the groups that it is given; waits while its gate is closed."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.busy: set[str] = set()
        self.attempts: list[tuple[list[str], float]] = []
        """The groups that met a lock, with their timeouts."""

    @property
    def sent(self) -> list[str]:
        return [it for group in self.groups for it in group]

    async def send(self, messages: Sequence[Message], patience: float) -> None:
        names = [it.id for it in messages]
        for it in messages:
            if it.ordering_key in self.busy or it.id in self.busy:
                self.attempts.append((names, patience))
                await asyncio.sleep(0)
                raise KeyBusy("held for too long", "ids" if it.id in self.busy else "keys")
        self.groups.append(names)
        await self.gate.wait()
        if any(it.startswith("bad") for it in names):
            raise QueueRejected("bad")
        if self.error is not None:
            raise self.error


def repetition(name: str) -> Message:
    return msgspec.structs.replace(message(name), dedupe=True)


async def test_single_publish_is_sent_at_once() -> None:
    queue = RecordingQueue()
    await GroupPublisher(queue.send, 10.0).publish([message("a"), message("b")])
    assert queue.groups == [["a", "b"]]


async def test_publishes_made_during_a_group_are_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_publisher, "LANES", 1)
    queue = RecordingQueue()
    queue.gate.clear()
    sender = GroupPublisher(queue.send, 10.0)
    calls = [asyncio.ensure_future(sender.publish([message(it)])) for it in "abcd"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue.gate.set()
    await asyncio.gather(*calls)
    assert queue.sent == list("abcd")
    assert len(queue.groups) <= 2


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("steps", range(4))
async def test_every_publish_is_sent_at_any_interleaving(
    monkeypatch: pytest.MonkeyPatch, lanes: int, steps: int
) -> None:
    monkeypatch.setattr(group_publisher, "LANES", lanes)
    queue = RecordingQueue()
    sender = GroupPublisher(queue.send, 10.0)

    async def publish_in_a_row(name: str) -> None:
        for n in range(20):
            await sender.publish([message(f"{name}{n}")])
            for _ in range(steps):
                await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await asyncio.gather(*(publish_in_a_row(it) for it in "abcdefg"))
    assert sorted(queue.sent) == sorted(f"{name}{n}" for name in "abcdefg" for n in range(20))


async def test_rejected_publish_does_not_fail_the_rest_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_publisher, "LANES", 1)
    sender = GroupPublisher(RecordingQueue().send, 10.0)
    names = ["first", "a", "bad 1", "b", "bad 2"]
    answers = await asyncio.gather(*(sender.publish([message(it)]) for it in names), return_exceptions=True)
    assert [type(it) for it in answers] == [type(None), type(None), QueueRejected, type(None), QueueRejected]


async def test_unavailable_queue_fails_the_whole_group() -> None:
    queue = RecordingQueue()
    queue.error = QueueUnavailable("away")
    sender = GroupPublisher(queue.send, 10.0)
    answers = await asyncio.gather(*(sender.publish([message(it)]) for it in "abc"), return_exceptions=True)
    assert [type(it) for it in answers] == [QueueUnavailable] * 3


async def test_cancelled_caller_does_not_cancel_the_rest_of_its_group() -> None:
    queue = RecordingQueue()
    queue.gate.clear()
    sender = GroupPublisher(queue.send, 10.0)
    calls = [asyncio.ensure_future(sender.publish([message(it)])) for it in "abcd"]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[3].cancel()
    await asyncio.sleep(0)
    queue.gate.set()
    await asyncio.gather(*calls[1:3])
    await sender.close(5.0)
    assert "d" not in queue.sent
    assert calls[0].cancelled()


async def test_large_groups_are_split_and_large_calls_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_publisher, "LANES", 1)
    monkeypatch.setattr(group_publisher, "GROUP_LIMIT", 3)
    queue = RecordingQueue()
    sender = GroupPublisher(queue.send, 10.0)
    sizes = [1, 2, 2, 5, 1, 1]
    await asyncio.gather(*(sender.publish([message(f"{n}")] * size) for n, size in enumerate(sizes)))
    assert [len(it) for it in queue.groups] == [3, 2, 5, 2]


async def test_publishes_to_a_locked_key_wait_separately_and_in_order() -> None:
    queue = RecordingQueue()
    queue.busy = {"busy"}
    sender = GroupPublisher(queue.send, 10.0)
    calls = [
        asyncio.ensure_future(sender.publish([message(f"{n}", key="busy" if n % 3 == 0 else "free")])) for n in range(9)
    ]
    async with asyncio.timeout(5):
        await asyncio.gather(*(it for n, it in enumerate(calls) if n % 3))
        late = asyncio.ensure_future(sender.publish([message("late", key="busy")]))
        await sender.publish([message("aside", key="free")])
        assert not late.done()
        queue.busy.clear()
        await asyncio.gather(*calls, late)
        await sender.publish([message("after", key="busy")])
    assert [it for it in queue.sent if it in {"0", "3", "6", "late", "after"}] == ["0", "3", "6", "late", "after"]
    assert not sender.waiting


async def test_publish_to_a_key_locked_too_long_fails() -> None:
    queue = RecordingQueue()
    queue.busy = {"a", "b"}
    sender = GroupPublisher(queue.send, 0.01)
    answers = await asyncio.gather(*(sender.publish([message(it, key=it)]) for it in "ab"), return_exceptions=True)
    assert [str(it) for it in answers] == ["held for too long"] * 2
    assert not sender.waiting


async def test_a_repeated_id_delays_no_other_publish() -> None:
    queue = RecordingQueue()
    queue.busy = {"held"}
    sender = GroupPublisher(queue.send, 10.0)
    repeated = [asyncio.ensure_future(sender.publish([repetition("held")])) for _ in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        for n in range(50):
            await sender.publish([message(f"{n}")])
    assert not any(it.done() for it in repeated)
    assert [group for group, _ in queue.attempts if not {"0", "held"}.issuperset(group)] == []
    queue.busy.clear()
    await asyncio.gather(*repeated)
    assert not sender.waiting


async def test_publishes_that_wait_for_different_locks_take_turns() -> None:
    queue = RecordingQueue()
    queue.busy = {f"k{n}" for n in range(20)}
    sender = GroupPublisher(queue.send, 10.0)
    calls = [asyncio.ensure_future(sender.publish([message(f"m{n}", key=f"k{n}")])) for n in range(20)]
    async with asyncio.timeout(5):
        while len(queue.attempts) < 100:  # noqa: ASYNC110  # it counts attempts
            await asyncio.sleep(0)
        queue.busy.remove("k19")
        tried = len(queue.attempts)
        await calls[19]
    assert len(queue.attempts) - tried <= 20
    queue.busy.clear()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("fault", ["bad", "busy"])
async def test_rejected_or_waiting_message_is_found_by_bisection(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(group_publisher, "LANES", 1)
    queue = RecordingQueue()
    queue.busy = {"busy"}
    sender = GroupPublisher(queue.send, 10.0)
    names = [f"m{n}" for n in range(500)]
    names[321] = fault
    calls = [asyncio.ensure_future(sender.publish([repetition(it)])) for it in names]
    async with asyncio.timeout(5):
        await asyncio.gather(*(it for n, it in enumerate(calls) if n != 321))
    assert len(queue.groups) + len(queue.attempts) <= 30
    queue.busy.clear()
    await asyncio.gather(calls[321], return_exceptions=True)
    assert isinstance(calls[321].exception(), QueueRejected | None)


async def test_a_group_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_publisher, "LANES", 1)
    monkeypatch.setattr(group_publisher, "GROUP_BYTES", 100)
    queue = RecordingQueue()
    sender = GroupPublisher(queue.send, 10.0)
    large = [msgspec.structs.replace(message(f"{n}"), body=bytes(40)) for n in range(5)]
    await asyncio.gather(*(sender.publish([it]) for it in large))
    assert [len(it) for it in queue.groups] == [2, 2, 1]
