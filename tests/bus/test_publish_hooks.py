"""Publish hooks and propagated headers."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from bus import Bus, BusFrozen, BusOptions, Delivery, InvalidEvent, InvalidListener, Publishing
from bus.testing import BusKit
from tests.bus.events import Ticked, UserCreated, UserUpdated


@pytest.fixture
async def kit() -> AsyncIterator[BusKit]:
    async with BusKit(options=BusOptions(propagate=frozenset({"tenant"}))) as kit:
        yield kit


class Inbound:
    """An async listener that records deliveries."""

    def __init__(self, bus: Bus) -> None:
        self.ids: list[str] = []
        self.headers: list[dict[str, str]] = []
        bus.add_async_listener(self.on_update, name="updates")

    async def on_update(self, event: UserUpdated, delivery: Delivery) -> None:
        self.ids.append(delivery.id)
        self.headers.append(dict(delivery.headers))


async def test_hook_sets_headers_of_every_kind_of_publish(kit: BusKit) -> None:
    inbound = Inbound(kit.bus)
    names: list[str] = []
    ids: list[str] = []

    def stamp(publishing: Publishing) -> None:
        names.append(publishing.name)
        ids.append(publishing.id)
        publishing.headers.setdefault("region", "eu")

    kit.bus.add_publish_hook(stamp)
    await kit.start()
    await kit.bus.publish(UserUpdated())
    await kit.bus.publish(UserUpdated(), id="explicit", headers={"region": "us", "tenant": "acme"})
    await kit.bus.publish_many([UserUpdated(), UserUpdated()])
    await kit.bus.publish_delayed(UserUpdated(), 1)
    await kit.bus.publish_scheduled(UserUpdated(), datetime.fromtimestamp(kit.clock.time(), UTC))
    await kit.advance(seconds=1)
    assert names == ["UserUpdated"] * 6
    assert "explicit" in ids
    assert sorted(inbound.ids) == sorted(ids)
    assert sorted(inbound.headers, key=str) == [{"region": "eu"}] * 5 + [{"region": "us", "tenant": "acme"}]


async def test_hooks_run_in_the_order_of_their_addition(kit: BusKit) -> None:
    inbound = Inbound(kit.bus)

    def first(publishing: Publishing) -> None:
        publishing.headers["seen"] = "first"

    def second(publishing: Publishing) -> None:
        publishing.headers["seen"] += ", second"

    kit.bus.add_publish_hook(first)
    kit.bus.add_publish_hook(second)
    await kit.start()
    await kit.bus.publish(UserUpdated())
    await kit.drain()
    assert inbound.headers == [{"seen": "first, second"}]


async def test_error_of_a_hook_fails_the_publish_before_any_listener(kit: BusKit) -> None:
    ran: list[str] = []

    async def on_update(event: UserUpdated) -> None:
        ran.append("sync")

    def refuse(publishing: Publishing) -> None:
        raise PermissionError("no tenant")

    kit.bus.add_sync_listener(on_update)
    inbound = Inbound(kit.bus)
    kit.bus.add_publish_hook(refuse)
    await kit.start()
    with pytest.raises(PermissionError, match="no tenant"):
        await kit.bus.publish(UserUpdated())
    with pytest.raises(PermissionError, match="no tenant"):
        await kit.bus.publish_many([UserUpdated()])
    await kit.drain()
    assert (ran, inbound.headers) == ([], [])


@pytest.mark.parametrize("headers", [{"beneath-x": "1"}, {"n": 1}, {"": "x"}])
async def test_invalid_header_of_a_hook_is_refused(kit: BusKit, headers: dict[str, Any]) -> None:
    Inbound(kit.bus)
    kit.bus.add_publish_hook(lambda publishing: publishing.headers.update(headers))
    await kit.start()
    with pytest.raises(InvalidEvent, match="header"):
        await kit.bus.publish(UserUpdated())


async def async_hook(publishing: Publishing) -> None: ...


@pytest.mark.parametrize("wrong", [None, 5, "stamp", async_hook, lambda: None, Publishing])
def test_invalid_hook_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidListener, match="a publish hook is `def f"):
        BusKit().bus.add_publish_hook(cast("Any", wrong))


async def test_hook_cannot_be_added_to_a_started_bus(kit: BusKit) -> None:
    await kit.start()
    with pytest.raises(BusFrozen, match="a publish hook was added after"):
        kit.bus.add_publish_hook(lambda publishing: None)


async def test_propagated_headers_pass_through_listeners_of_every_kind(kit: BusKit) -> None:
    async def on_create(event: UserCreated) -> None:
        await kit.bus.publish(Ticked(1))

    async def on_tick(event: Ticked) -> None:
        with kit.bus.correlation("another"):
            await kit.bus.publish_many([UserUpdated()])
        await kit.bus.publish(UserUpdated(), headers={"tenant": "other"})

    kit.bus.add_sync_listener(on_create)
    kit.bus.add_async_listener(on_tick, name="ticks")
    inbound = Inbound(kit.bus)
    await kit.start()
    await kit.bus.publish(UserCreated(), headers={"tenant": "acme", "trace": "1"})
    await kit.drain()
    assert inbound.headers == [{"tenant": "acme"}, {"tenant": "other"}]


@pytest.mark.parametrize("wrong", [{"tenant"}, ["tenant"], "tenant", None, frozenset({""}), frozenset({"beneath-x"})])
def test_wrong_names_of_propagated_headers_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"BusOptions\.propagate"):
        BusOptions(propagate=cast("Any", wrong))
