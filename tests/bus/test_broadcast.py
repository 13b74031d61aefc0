"""Broadcasts reach every process once, and failing broadcast listeners affect neither publishers nor reception."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import pytest

from bus import Bus, Delivery, EventType
from bus.testing import BusKit
from infra.clock import FakeClock
from infra.mq import QueueUnavailable, Registry
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Ticked, UserUpdated
from tests.hostile_errors import PanicException, Wordless


class Cache:
    """A cache that drops one entry for each broadcast, and is cleared after a gap."""

    def __init__(self, bus: Bus) -> None:
        self.dropped: list[int] = []
        self.gaps = 0
        bus.add_broadcast_listener(self.drop, on_gap=self.clear)

    async def drop(self, event: Ticked) -> None:
        self.dropped.append(event.n)

    def clear(self) -> None:
        self.gaps += 1


async def two_processes() -> tuple[FakeClock, MemoryQueue, Bus, Bus, Cache, Cache]:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    one, two = Bus(mq, clock=clock), Bus(mq, clock=clock)
    caches = Cache(one), Cache(two)
    for bus in (one, two):
        starting = asyncio.create_task(bus.start())
        await clock.advance(2)
        await starting
    return clock, mq, one, two, *caches


async def test_every_process_receives_a_broadcast_once_and_the_publisher_before_returning() -> None:
    clock, mq, one, two, mine, other = await two_processes()
    await one.publish(Ticked(1))
    assert mine.dropped == [1]
    await clock.settle()
    assert (mine.dropped, other.dropped) == ([1], [1])
    await two.publish_many([Ticked(2), Ticked(3)])
    await clock.advance(5)
    assert (mine.dropped, other.dropped) == ([1, 2, 3], [1, 2, 3])
    for bus in (one, two):
        await bus.close()
    await mq.close()


async def test_process_without_listeners_can_broadcast() -> None:
    clock, mq, one, two, mine, other = await two_processes()
    third = Bus(mq, clock=clock)
    await third.start()
    await third.publish(Ticked(9))
    await clock.settle()
    assert (mine.dropped, other.dropped) == ([9], [9])
    for bus in (one, two, third):
        await bus.close()
    await mq.close()


class CopyingQueue(MemoryQueue):
    """A queue that returns copies of its registry, as a remote queue does."""

    async def registry(self) -> Registry:
        registry = await super().registry()
        return Registry(frozenset(registry.routed), frozenset(registry.broadcast))


async def test_running_publisher_reaches_a_new_broadcast_listener() -> None:
    clock = FakeClock()
    mq = CopyingQueue(clock=clock)
    await mq.open()
    publisher, listener = Bus(mq, clock=clock), Bus(mq, clock=clock)

    async def handle(event: Ticked) -> None: ...

    # The durable subscription puts the event into the publisher's subscription cache.
    publisher.add_async_listener(handle, name="ticks")
    await publisher.start()
    await publisher.publish(Ticked(1))
    cache = Cache(listener)
    await listener.start()
    await clock.advance(1.1)  # the lifetime of the subscription cache
    await publisher.publish(Ticked(2))
    await clock.settle()
    assert cache.dropped == [2]
    for bus in (publisher, listener):
        await bus.close()
    await mq.close()


async def test_failing_broadcast_listener_does_not_affect_other_listeners() -> None:
    async with BusKit() as kit:
        heard: list[int] = []

        async def broken(event: Ticked) -> None:
            raise ZeroDivisionError

        async def sound(event: Ticked) -> None:
            heard.append(event.n)

        kit.bus.add_broadcast_listener(broken)
        kit.bus.add_broadcast_listener(sound)
        await kit.start()
        await kit.bus.publish(Ticked(1))
        assert heard == [1]
        assert kit.bus.metrics.broadcast_failures == 1


async def test_on_gap_runs_after_a_gap() -> None:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    bus = Bus(mq, clock=clock)
    cache = Cache(bus)
    receivers = []
    receiver = mq.receiver

    class Faulty:
        """A receiver that fails while it is cut off, and reports a gap afterwards."""

        def __init__(self, inner: object) -> None:
            self.inner = inner
            self.state = "fine"

        async def receive(self, wait: float) -> tuple[list[bytes], bool]:
            if self.state == "cut off":
                raise QueueUnavailable("the connection is cut")
            gap, self.state = self.state == "back", "fine"
            if gap:
                return [], True
            await clock.sleep(min(wait, 1.0))
            return [], False

        def wake(self) -> None: ...

        async def close(self) -> None: ...

    async def wrapped(*, origin: str) -> Faulty:
        faulty = Faulty(await receiver(origin=origin))
        receivers.append(faulty)
        return faulty

    mq.receiver = wrapped  # type: ignore[method-assign,assignment]  # a receiver that can be cut off
    starting = asyncio.create_task(bus.start())
    await clock.advance(2)
    await starting
    receivers[0].state = "cut off"
    await clock.advance(10)
    assert cache.gaps == 0
    receivers[0].state = "back"
    await clock.advance(2)
    assert cache.gaps == 1
    assert bus.metrics.broadcast_gaps == 1
    await bus.close()
    await mq.close()


async def test_undecodable_and_unknown_broadcasts_are_skipped() -> None:
    clock, mq, one, two, mine, other = await two_processes()
    await mq.broadcast([b"garbage"], origin="elsewhere")
    stranger = Bus(mq, clock=clock)

    async def on_update(event: UserUpdated) -> None: ...

    stranger.add_broadcast_listener(on_update)
    starting = asyncio.create_task(stranger.start())
    await clock.advance(2)
    await starting
    await stranger.publish(UserUpdated())
    await one.publish(Ticked(4))
    await clock.advance(2)
    assert (mine.dropped, other.dropped) == ([4], [4])
    assert two.metrics.broadcast_failures == 1
    for bus in (one, two, stranger):
        await bus.close()
    await mq.close()


tenant: ContextVar[str] = ContextVar("tenant", default="none")


async def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def await_cancelled_future() -> None:
    lost = asyncio.get_running_loop().create_future()
    lost.cancel()
    await lost


async def raise_panic() -> None:
    raise PanicException


async def raise_wordless() -> None:
    raise Wordless


async def raise_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raise_wordless())


async def raise_generator_exit() -> None:
    raise GeneratorExit


HOSTILE = [
    cancel_own_task,
    await_cancelled_future,
    raise_panic,
    raise_wordless,
    raise_group,
    raise_generator_exit,
]


@pytest.mark.parametrize("act", HOSTILE)
async def test_broadcast_listener_can_neither_cancel_its_publisher_nor_end_reception(
    act: Callable[[], Awaitable[None]],
) -> None:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    buses = Bus(mq, clock=clock), Bus(mq, clock=clock)
    heard: list[list[int]] = [[], []]

    def listen(bus: Bus, into: list[int]) -> None:
        async def hostile(event: Ticked) -> None:
            tenant.set("ada")
            if event.n < 2:
                await act()

        async def sound(event: Ticked) -> None:
            assert tenant.get() == "none"
            into.append(event.n)

        bus.add_broadcast_listener(hostile, on_gap=act)
        bus.add_broadcast_listener(sound)

    for bus, into in zip(buses, heard, strict=True):
        listen(bus, into)
        starting = asyncio.create_task(bus.start())
        await clock.advance(2)
        await starting
    for n in range(4):
        await buses[0].publish(Ticked(n))
        await buses[0]._broadcasts._report_gap()
    task = asyncio.current_task()
    assert task is not None
    assert (task.cancelling(), tenant.get()) == (0, "none")
    await clock.advance(1)
    assert heard == [[0, 1, 2, 3]] * 2
    assert [each.metrics.broadcast_failures for each in buses] == [6, 2]
    assert all(each.failures == 0 for each in buses[1].background_tasks)
    for bus in buses:
        await bus.close()
    await mq.close()


class Stubborn:
    """A listener that suppresses cancellations until it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.cancelled = 0

    async def listen(self, event: Ticked) -> None:
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


async def started(mq: MemoryQueue, clock: FakeClock, *listeners: Callable[[Ticked], Awaitable[None]]) -> Bus:
    bus = Bus(mq, clock=clock)
    for each in listeners:
        bus.add_broadcast_listener(each)
    starting = asyncio.create_task(bus.start())
    await clock.advance(2)
    await starting
    return bus


async def test_hanging_broadcast_listener_is_cancelled_and_reception_continues() -> None:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    stubborn, heard = Stubborn(), list[int]()

    async def hang(event: Ticked) -> None:
        await asyncio.Event().wait()

    async def sound(event: Ticked) -> None:
        heard.append(event.n)

    publisher, listener = await started(mq, clock), await started(mq, clock, hang, stubborn.listen, sound)
    await publisher.publish_many([Ticked(1), Ticked(2)])
    await clock.advance(2 * (60 + 60 + 2) + 1)
    assert heard == [1, 2]
    assert stubborn.cancelled == 2
    assert listener.metrics.broadcast_failures == 4
    stubborn.released.set()
    for bus in (publisher, listener):
        await bus.close()
    await mq.close()


async def test_uncancellable_broadcast_listener_blocks_neither_its_publisher_nor_shutdown() -> None:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    stubborn = Stubborn()
    publisher, listener = await started(mq, clock, stubborn.listen), await started(mq, clock, stubborn.listen)
    publishing = asyncio.create_task(publisher.publish(Ticked(1)))
    await clock.settle()
    publishing.cancel()
    closing = asyncio.create_task(listener.close())
    await clock.advance(2)
    assert (publishing.cancelled(), closing.done()) == (True, True)
    stubborn.released.set()
    await clock.settle()
    await publisher.close()
    await mq.close()


@dataclass(frozen=True)
class UnstableKey:
    """An event whose `ordering_key` raises from the second call on."""

    asked: ClassVar[int] = 0

    def ordering_key(self) -> str:
        UnstableKey.asked += 1
        if UnstableKey.asked > 1:
            raise ValueError("called again")
        return "key"


async def test_second_call_of_ordering_key_cannot_fail_an_accepted_publish() -> None:
    async with BusKit() as kit:
        heard: list[str | None] = []

        async def project(event: UnstableKey) -> None: ...

        async def hear(event: UnstableKey, delivery: Delivery) -> None:
            heard.append(delivery.ordering_key)

        kit.bus.add_async_ordered_listener(project, name="l")
        kit.bus.add_broadcast_listener(hear)
        await kit.start()
        await kit.bus.publish(UnstableKey())
        assert heard == ["key"]


async def test_undecodable_event_does_not_end_reception(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, mq, one, two, _, other = await two_processes()
    error: BaseException
    for n, error in enumerate([AttributeError("no"), PanicException(), Wordless(), asyncio.CancelledError()]):

        def refuse(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(EventType, "decode", refuse)
            await one.publish(Ticked(n))
            await clock.settle()
    await one.publish(Ticked(9))
    await clock.settle()
    assert other.dropped == [9]
    assert two.metrics.broadcast_failures == 4
    for bus in (one, two):
        await bus.close()
    await mq.close()


def exit_in_a_group() -> None:
    raise BaseExceptionGroup("g", [ValueError(), SystemExit(3)])


@pytest.mark.parametrize("end", [lambda: sys.exit(3), exit_in_a_group], ids=["alone", "in a group"])
async def test_exit_of_a_broadcast_listener_ends_the_process_and_not_its_publisher(end: Callable[[], None]) -> None:
    async with BusKit() as kit:

        async def leave(event: Ticked) -> None:
            end()

        kit.bus.add_broadcast_listener(leave)
        await kit.start()
        await kit.bus.publish(Ticked(1))
        with pytest.raises(SystemExit) as raised:
            await kit.bus.watch()
        assert raised.value.code == 3


async def test_cancelled_publisher_cancels_its_broadcast_listener_and_ends() -> None:
    async with BusKit() as kit:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def slow(event: Ticked) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        kit.bus.add_broadcast_listener(slow)
        await kit.start()
        publishing = asyncio.create_task(kit.bus.publish(Ticked(1)))
        await begun.wait()
        publishing.cancel()
        await asyncio.wait([publishing])
        assert (publishing.cancelled(), cancelled.is_set()) == (True, True)
