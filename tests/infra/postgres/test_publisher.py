"""Publishes outside transactions leave in groups, and none is forgotten."""

import asyncio
from collections.abc import Sequence

import pytest

from infra.mq import Message, QueueRejected, QueueUnavailable
from infra.mq.drivers.sql.postgres import publisher
from infra.mq.drivers.sql.postgres.errors import KeyBusy
from infra.mq.drivers.sql.postgres.publisher import Publisher
from tests.infra.mq.acting import message


class Wire:
    """Takes groups, one after the other when told to."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.busy: set[str] = set()
        self.busy_gate = asyncio.Event()

    @property
    def sent(self) -> list[str]:
        return [it for group in self.groups for it in group]

    async def send(self, messages: Sequence[Message], patient: bool) -> None:
        if not patient and any(it.ordering_key in self.busy for it in messages):
            raise KeyBusy("busy")
        self.groups.append([it.id for it in messages])
        await self.gate.wait()
        if patient:
            await self.busy_gate.wait()
        if any(it.id.startswith("bad") for it in messages):
            raise QueueRejected("bad")
        if self.error is not None:
            raise self.error


async def test_a_lone_publish_leaves_at_once() -> None:
    wire = Wire()
    await Publisher(wire.send).publish([message("a"), message("b")])
    assert wire.groups == [["a", "b"]]


async def test_those_that_come_while_others_are_under_way_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LANES", 1)
    wire = Wire()
    wire.gate.clear()
    sender = Publisher(wire.send)
    calls = [asyncio.ensure_future(sender.publish([message(it)])) for it in "abcd"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    wire.gate.set()
    await asyncio.gather(*calls)
    assert wire.sent == list("abcd")
    assert len(wire.groups) <= 2


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("steps", range(4))
async def test_none_is_forgotten_whenever_it_comes(monkeypatch: pytest.MonkeyPatch, lanes: int, steps: int) -> None:
    monkeypatch.setattr(publisher, "LANES", lanes)
    wire = Wire()
    sender = Publisher(wire.send)

    async def publish_in_a_row(name: str) -> None:
        for n in range(20):
            await sender.publish([message(f"{name}{n}")])
            for _ in range(steps):
                await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await asyncio.gather(*(publish_in_a_row(it) for it in "abcdefg"))
    assert sorted(wire.sent) == sorted(f"{name}{n}" for name in "abcdefg" for n in range(20))


async def test_the_refused_keep_nobody_elses_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LANES", 1)
    sender = Publisher(Wire().send)
    names = ["first", "a", "bad 1", "b", "bad 2"]
    answers = await asyncio.gather(*(sender.publish([message(it)]) for it in names), return_exceptions=True)
    assert [type(it) for it in answers] == [type(None), type(None), QueueRejected, type(None), QueueRejected]


async def test_what_befalls_the_queue_befalls_the_whole_group() -> None:
    wire = Wire()
    wire.error = QueueUnavailable("away")
    sender = Publisher(wire.send)
    answers = await asyncio.gather(*(sender.publish([message(it)]) for it in "abc"), return_exceptions=True)
    assert [type(it) for it in answers] == [QueueUnavailable] * 3


async def test_a_cancelled_caller_takes_nobody_along() -> None:
    wire = Wire()
    wire.gate.clear()
    sender = Publisher(wire.send)
    calls = [asyncio.ensure_future(sender.publish([message(it)])) for it in "abcd"]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[3].cancel()
    await asyncio.sleep(0)
    wire.gate.set()
    await asyncio.gather(*calls[1:3])
    await sender.close(5.0)
    assert "d" not in wire.sent
    assert calls[0].cancelled()


async def test_large_groups_are_split_and_large_calls_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LANES", 1)
    monkeypatch.setattr(publisher, "GROUP_LIMIT", 3)
    wire = Wire()
    sender = Publisher(wire.send)
    sizes = [1, 2, 2, 5, 1, 1]
    await asyncio.gather(*(sender.publish([message(f"{n}")] * size) for n, size in enumerate(sizes)))
    assert [len(it) for it in wire.groups] == [3, 2, 5, 2]


async def test_those_whose_key_is_busy_wait_apart_and_keep_their_order() -> None:
    wire = Wire()
    wire.busy = {"busy"}
    sender = Publisher(wire.send)
    calls = [
        asyncio.ensure_future(sender.publish([message(f"{n}", key="busy" if n % 3 == 0 else "free")])) for n in range(9)
    ]
    async with asyncio.timeout(5):
        await asyncio.gather(*(it for n, it in enumerate(calls) if n % 3))
        late = asyncio.ensure_future(sender.publish([message("late", key="busy")]))
        await sender.publish([message("aside", key="free")])
        assert not late.done()
        wire.busy.clear()
        wire.busy_gate.set()
        await asyncio.gather(*calls, late)
        await sender.publish([message("after", key="busy")])
    assert [it for it in wire.sent if it in {"0", "3", "6", "late", "after"}] == ["0", "3", "6", "late", "after"]
    assert not sender._busy


async def test_one_that_waits_for_its_key_in_vain_is_told_so() -> None:
    async def send(_: Sequence[Message], patient: bool) -> None:
        raise KeyBusy("held for too long" if patient else "held")

    sender = Publisher(send)
    answers = await asyncio.gather(*(sender.publish([message(it, key=it)]) for it in "ab"), return_exceptions=True)
    assert [str(it) for it in answers] == ["held for too long"] * 2
    assert not sender._busy
