"""What both type checkers refuse: each `type: ignore` below is an error of mypy and pyright if they accept its line."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import dataclasses
from collections.abc import AsyncIterator
from typing import get_type_hints

import pytest

from bus import AsyncOptions, BroadcastOptions, Bus, Delivery, InvalidListener, ListenerOptions, OrderedOptions, Retry
from infra.clock import FakeClock
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import UserCreated


class TypedService:
    def __init__(self) -> None:
        self.seen: list[object] = []

    async def on_nothing(self) -> None: ...

    async def on_three(self, event: UserCreated, delivery: Delivery, more: int) -> None: ...

    async def on_other(self, event: UserCreated, delivery: str) -> None: ...

    async def on_stream(self, event: UserCreated) -> AsyncIterator[int]:
        yield 1

    async def on_created(self, event: UserCreated) -> None:
        self.seen.append(event)

    async def on_delivery(self, event: UserCreated, delivery: Delivery) -> None:
        self.seen.append((event, delivery))

    def on_plain(self, event: UserCreated) -> None:
        self.seen.append(event)

    async def returns_a_number(self, event: UserCreated) -> int:
        return len(event.email)


@pytest.fixture
def bus() -> Bus:
    return Bus(MemoryQueue(clock=FakeClock()))


def test_handlers_of_both_signatures_are_accepted(bus: Bus) -> None:
    service = TypedService()
    bus.add_sync_listener(service.on_created)
    bus.add_sync_listener(service.on_plain)
    bus.add_async_listener(service.on_created)
    bus.add_async_listener(service.on_delivery)
    bus.add_broadcast_listener(service.on_delivery)
    assert len(bus.listeners) == 5


def test_handlers_of_other_signatures_are_refused_by_checker_and_bus(bus: Bus) -> None:
    service = TypedService()
    with pytest.raises(InvalidListener):
        bus.add_async_listener(service.on_nothing)  # type: ignore[arg-type]  # no event
    with pytest.raises(InvalidListener):
        bus.add_async_listener(service.on_three)  # type: ignore[arg-type]  # three parameters
    with pytest.raises(InvalidListener):
        bus.add_async_ordered_listener(service.on_other)  # type: ignore[arg-type]  # the second is no Delivery
    with pytest.raises(InvalidListener):
        bus.add_sync_listener(service.on_stream)  # type: ignore[arg-type]  # an async generator
    with pytest.raises(InvalidListener):
        bus.add_broadcast_listener(3)  # type: ignore[arg-type]  # not callable
    assert bus.listeners == ()


def test_options_of_other_types_are_refused_by_checker_and_bus(bus: Bus) -> None:
    handler = TypedService().on_created
    with pytest.raises(InvalidListener):
        bus.add_async_listener(handler, retry=3)  # type: ignore[arg-type]  # not a Retry
    with pytest.raises(InvalidListener):
        bus.add_async_listener(handler, timeout="5")  # type: ignore[arg-type]  # not seconds
    with pytest.raises(InvalidListener):
        bus.add_async_ordered_listener(handler, on_exhausted="stop")  # type: ignore[arg-type]  # neither skip nor block
    with pytest.raises(TypeError):
        bus.add_sync_listener(handler, once=True)  # type: ignore[call-arg]  # an option of async listeners
    with pytest.raises(TypeError, match=r"on_created: 'on_exhausted' is not an option of async listeners: name, "):
        bus.add_async_listener(handler, on_exhausted="skip")  # type: ignore[call-arg]  # an option of ordered listeners
    with pytest.raises(TypeError, match=r"on_created: 'onec' is not an option of ordered listeners"):
        bus.add_async_ordered_listener(handler, onec=True)  # type: ignore[call-arg]  # a slip
    with pytest.raises(TypeError, match=r"'retry' is not an option of broadcast listeners: on_gap"):
        bus.add_broadcast_listener(handler, retry=Retry())  # type: ignore[call-arg]  # broadcasts are not retried
    assert bus.listeners == ()


def test_checker_refuses_a_handler_that_returns_a_value(bus: Bus) -> None:
    bus.add_async_listener(TypedService().returns_a_number)  # type: ignore[arg-type]  # the value would be lost
    assert len(bus.listeners) == 1


def test_options_that_callers_pass_are_the_fields_of_listener_options() -> None:
    passed = get_type_hints(OrderedOptions) | get_type_hints(BroadcastOptions)
    stored = get_type_hints(ListenerOptions)
    assert set(passed) == {each.name for each in dataclasses.fields(ListenerOptions)}
    assert {option for option in passed if passed[option] != stored[option]} == {
        "aliases",
        "concurrency",
        "middleware",
    }
    assert get_type_hints(AsyncOptions).items() <= passed.items()
