"""Registration of listeners: names, events, signatures and option defaults."""

import functools
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from bus import Bus, BusFrozen, Delivery, InvalidEvent, InvalidListener, ListenerKind, Retry
from bus.events import EventType
from bus.testing import BusKit
from infra.clock import FakeClock
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated, Withdrawn


@pytest.fixture
def bus() -> Bus:
    return Bus(MemoryQueue(clock=FakeClock()))


class Service:
    async def on_created(self, event: UserCreated) -> None: ...

    async def on_either(self, event: UserCreated | UserUpdated) -> None: ...

    async def with_delivery(self, event: UserCreated, delivery: Delivery) -> None: ...

    def plain(self, event: UserCreated) -> None: ...

    async def on_deposit(self, event: Deposited) -> None: ...

    async def on_money(self, event: Deposited | Withdrawn) -> None: ...

    async def on_tick(self, event: Ticked) -> None: ...


def test_event_types_are_read_from_the_annotation(bus: Bus) -> None:
    service = Service()
    bus.add_async_listener(service.on_created)
    bus.add_async_listener(service.on_either)
    bus.add_async_listener(service.on_tick)
    assert [each.events for each in bus.listeners] == [
        {"UserCreated"},
        {"UserCreated", "UserUpdated"},
        {"clock.ticked"},
    ]


def test_the_default_name_is_the_service_package_and_the_method(bus: Bus) -> None:
    bus.add_async_listener(Service().on_created)
    assert bus.listeners[0].name == "bus.on_created"


def test_listener_options_have_documented_defaults(bus: Bus) -> None:
    bus.add_async_listener(Service().on_created)
    listener = bus.listeners[0]
    assert (listener.kind, listener.options.timeout, listener.options.concurrency, listener.options.once) == (
        ListenerKind.ASYNC,
        60.0,
        16,
        False,
    )
    assert listener.options.retry == Retry(max_attempts=10, min_delay=1.0, max_delay=900.0, factor=2.0, jitter="full")


def test_timeout_none_disables_the_timeout(bus: Bus) -> None:
    bus.add_async_listener(Service().on_created, timeout=None)
    assert bus.listeners[0].options.timeout is None


async def module_level(event: UserCreated) -> None: ...


async def generator(event: UserCreated) -> AsyncIterator[int]:
    yield 1


async def without_annotation(event) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001 - the error under test


async def without_parameters() -> None: ...


async def of_str(event: str) -> None: ...


async def of_any(event: Any) -> None: ...  # noqa: ANN401 - the error under test


async def of_optional(event: UserCreated | None) -> None: ...


async def with_wrong_delivery(event: UserCreated, delivery: str) -> None: ...


async def with_three(event: UserCreated, delivery: Delivery, more: int) -> None: ...


async def keyword_only(*, event: UserCreated) -> None: ...


async def star(*events: UserCreated) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        generator,
        without_annotation,
        without_parameters,
        with_wrong_delivery,
        with_three,
        keyword_only,
        star,
    ],
)
def test_invalid_handler_signature_is_refused_by_name(bus: Bus, handler: Callable[..., Any]) -> None:
    with pytest.raises(InvalidListener) as refused:
        bus.add_async_listener(handler, name="x")
    assert handler.__qualname__ in str(refused.value)
    assert "a handler takes one event" in str(refused.value)


@pytest.mark.parametrize("handler", [of_str, of_optional, of_any])
def test_parameter_that_is_no_event_class_is_refused(bus: Bus, handler: Callable[..., Any]) -> None:
    with pytest.raises(InvalidEvent, match="is not an event"):
        bus.add_async_listener(handler, name="x")


def test_functions_lambdas_and_partials_need_a_name(bus: Bus) -> None:
    for handler in (module_level, functools.partial(module_level)):
        with pytest.raises(InvalidListener, match=r"name='\.\.\.'"):
            bus.add_async_listener(handler)
    bus.add_async_listener(module_level, name="module.level")
    assert bus.listeners[0].name == "module.level"


def test_a_sync_listener_needs_no_name(bus: Bus) -> None:
    bus.add_sync_listener(module_level)
    assert bus.listeners[0].kind is ListenerKind.SYNC


def test_listener_registered_twice_is_refused_by_name(bus: Bus) -> None:
    service = Service()
    bus.add_async_listener(service.on_created)
    with pytest.raises(InvalidListener, match=r"Service\.on_created is registered twice"):
        bus.add_async_listener(service.on_created)
    with pytest.raises(InvalidListener, match=r"two listeners are called 'bus\.on_created'"):
        bus.add_async_listener(Service().on_created)


def test_alias_of_another_listener_cannot_be_used_as_a_name(bus: Bus) -> None:
    bus.add_async_listener(Service().on_created, name="new", aliases=["old"])
    with pytest.raises(InvalidListener, match="two listeners are called 'old'"):
        bus.add_async_listener(Service().on_created, name="old")


def test_one_handler_may_be_sync_and_async_listener(bus: Bus) -> None:
    service = Service()
    bus.add_sync_listener(service.on_created)
    bus.add_async_listener(service.on_created)
    assert [each.kind for each in bus.listeners] == [ListenerKind.SYNC, ListenerKind.ASYNC]


def test_two_classes_with_one_wire_name_are_refused(bus: Bus) -> None:
    @dataclass(frozen=True)
    class Impostor:
        event_name: ClassVar[str] = "UserCreated"

    async def on_impostor(event: Impostor) -> None: ...

    on_impostor.__annotations__ = {"event": Impostor, "return": None}
    bus.add_async_listener(Service().on_created)
    with pytest.raises(InvalidEvent, match="two classes have the wire name 'UserCreated'"):
        bus.add_async_listener(on_impostor, name="x")


def test_ordered_listener_requires_an_ordering_key(bus: Bus) -> None:
    with pytest.raises(InvalidListener, match="UserCreated has no `def ordering_key"):
        bus.add_async_ordered_listener(Service().on_created)
    bus.add_async_ordered_listener(Service().on_money)


@dataclass(frozen=True, kw_only=True)
class CustomerMoved:
    ordering_scope: ClassVar[str] = "customer"
    name: str

    def ordering_key(self) -> str:
        return self.name


async def on_account_or_customer(event: Deposited | Withdrawn | CustomerMoved) -> None: ...


def test_ordered_listener_of_events_with_different_ordering_scopes_is_refused(bus: Bus) -> None:
    reason = (
        "tests.bus.test_registration.on_account_or_customer is one ordered listener of events whose ordering keys "
        "identify different things: Deposited has the ordering_scope 'account' and CustomerMoved 'customer'; "
        "add one listener for each scope"
    )
    with pytest.raises(InvalidListener, match=f"^{re.escape(reason)}$"):
        bus.add_async_ordered_listener(on_account_or_customer, name="moves")
    assert bus.listeners == ()


def test_listeners_without_order_accept_events_with_different_ordering_scopes(bus: Bus) -> None:
    bus.add_async_listener(on_account_or_customer, name="moves")
    bus.add_sync_listener(on_account_or_customer)
    bus.add_broadcast_listener(on_account_or_customer)
    assert len(bus.listeners) == 3


def test_ordering_scope_is_inherited_or_stated_again(bus: Bus) -> None:
    @dataclass(frozen=True, kw_only=True)
    class CustomerLeft(CustomerMoved): ...

    @dataclass(frozen=True, kw_only=True)
    class CustomerJoined(CustomerMoved):
        ordering_scope: ClassVar[str] = CustomerMoved.ordering_scope

    async def on_customer(event: CustomerMoved) -> None: ...

    on_customer.__annotations__ = {"event": CustomerMoved | CustomerLeft | CustomerJoined}
    bus.add_async_ordered_listener(on_customer, name="customers")
    assert {each.ordering_scope for each in bus.listeners[0].event_types} == {"customer"}


@pytest.mark.parametrize("scope", ["", "two\nlines", 7, b"account"])
def test_ordering_scope_must_be_a_printable_name(scope: object) -> None:
    cls = type("Moved", (CustomerMoved,), {"ordering_scope": scope})
    with pytest.raises(InvalidEvent, match="Moved: ordering_scope must be"):
        EventType(cls)


def test_ordering_scope_without_ordering_key_is_refused() -> None:
    @dataclass(frozen=True)
    class Keyless:
        ordering_scope: ClassVar[str] = "account"

    with pytest.raises(InvalidEvent, match="Keyless: ordering_scope says what the ordering key identifies: define"):
        EventType(Keyless)


def test_a_plain_function_takes_neither_timeout_nor_once(bus: Bus) -> None:
    with pytest.raises(InvalidListener, match="timeout needs an `async def` handler"):
        bus.add_async_listener(Service().plain, timeout=5)
    with pytest.raises(InvalidListener, match="once=True needs an `async def` handler"):
        bus.add_async_listener(Service().plain, once=True)
    bus.add_async_listener(Service().plain)
    assert bus.listeners[0].options.timeout is None


def test_once_needs_a_database(bus: Bus) -> None:
    with pytest.raises(InvalidListener, match="needs a database"):
        bus.add_async_listener(Service().on_created, once=True)


async def test_registering_after_start_raises() -> None:
    async with BusKit() as kit:
        await kit.start()
        with pytest.raises(BusFrozen, match=r"Service\.on_created was added after bus\.start\(\)"):
            kit.bus.add_sync_listener(Service().on_created)
        with pytest.raises(BusFrozen):
            await kit.bus.start()


def test_mutable_event_class_is_refused(bus: Bus) -> None:
    @dataclass
    class Loose:
        n: int

    async def on_loose(event: Loose) -> None: ...

    on_loose.__annotations__ = {"event": Loose, "return": None}
    with pytest.raises(InvalidEvent, match="frozen=True"):
        bus.add_async_listener(on_loose, name="x")


def test_a_field_that_cannot_be_validated_is_refused(bus: Bus) -> None:
    class Opaque: ...

    @dataclass(frozen=True)
    class Odd:
        field: "dict[str, int] | list[int] | set[int] | tuple[int, ...]"

    async def on_odd(event: Odd) -> None: ...

    on_odd.__annotations__ = {"event": Odd, "return": None}
    with pytest.raises(InvalidEvent, match="msgspec can validate"):
        bus.add_async_listener(on_odd, name="x")
