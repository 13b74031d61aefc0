"""Tests of `publish` without a database: order of listeners, messages sent, and errors."""

import asyncio
import contextlib
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import (
    Bus,
    BusError,
    BusNotStarted,
    Delivery,
    InvalidEvent,
    PublishIndeterminate,
    PublishRejected,
    PublishTooDeep,
)
from bus.options import BusOptions
from bus.testing import BusKit
from infra.clock import FakeClock
from infra.mq import Message, QueueIndeterminate, QueueUnavailable, Registry
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated


class Recorder:
    """Handlers that record their arguments."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.deliveries: list[Delivery] = []

    async def created(self, event: UserCreated) -> None:
        self.seen.append(event)

    async def updated(self, event: UserUpdated, delivery: Delivery) -> None:
        self.seen.append(event)
        self.deliveries.append(delivery)

    def created_plain(self, event: UserCreated) -> None:
        self.seen.append("plain")

    async def deposited(self, event: Deposited, delivery: Delivery) -> None:
        self.seen.append((event.account, event.amount))
        self.deliveries.append(delivery)

    async def ticked(self, event: Ticked) -> None:
        self.seen.append(event.n)


async def test_sync_listeners_run_in_order_of_registration_before_publish_returns() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_sync_listener(recorder.created)
        kit.bus.add_sync_listener(recorder.created_plain)
        await kit.start()
        await kit.bus.publish(UserCreated())
        assert recorder.seen == [UserCreated(), "plain"]


async def test_async_listeners_run_only_in_the_worker() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.created)
        await kit.start()
        await kit.bus.publish(UserCreated(email="eve@example.com"))
        assert recorder.seen == []
        assert await kit.drain() == 1
        assert recorder.seen == [UserCreated(email="eve@example.com")]


async def test_publishing_before_start_and_after_close_raises() -> None:
    async with BusKit() as kit:
        with pytest.raises(BusNotStarted, match=r"bus\.start"):
            await kit.bus.publish(UserCreated())
        with pytest.raises(BusNotStarted):
            await kit.bus.cancel("x")
        with pytest.raises(BusNotStarted):
            await kit.bus.run()
        await kit.start()
        await kit.bus.close()
        with pytest.raises(BusNotStarted):
            await kit.bus.publish(UserCreated())


async def test_error_of_a_sync_listener_fails_publish_and_sends_nothing() -> None:
    async with BusKit() as kit:
        recorder = Recorder()

        async def refuse(event: UserCreated) -> None:
            await kit.bus.publish(UserUpdated())
            raise ZeroDivisionError

        kit.bus.add_sync_listener(refuse)
        kit.bus.add_async_listener(recorder.created)
        kit.bus.add_async_listener(recorder.updated)
        await kit.start()
        with pytest.raises(ZeroDivisionError):
            await kit.bus.publish(UserCreated())
        assert await kit.drain() == 0
        assert kit.all_published == ()


async def test_nested_publishes_run_depth_first_and_follow_their_cause() -> None:
    async with BusKit() as kit:
        order: list[str] = []
        recorder = Recorder()

        async def first(event: UserCreated) -> None:
            order.append("first begins")
            await kit.bus.publish(UserUpdated())
            order.append("first ends")

        async def nested(event: UserUpdated) -> None:
            order.append("nested")

        async def second(event: UserCreated) -> None:
            order.append("second")

        kit.bus.add_sync_listener(first)
        kit.bus.add_sync_listener(nested)
        kit.bus.add_sync_listener(second)
        kit.bus.add_async_listener(recorder.updated)
        kit.bus.add_async_listener(recorder.created)
        await kit.start()
        await kit.bus.publish(UserCreated())
        assert order == ["first begins", "nested", "first ends", "second"]
        assert [type(each) for each in kit.all_published] == [UserCreated, UserUpdated]


async def test_cycle_of_sync_listeners_is_refused_with_the_chain_of_events() -> None:
    async with BusKit() as kit:

        async def again(event: Ticked) -> None:
            await kit.bus.publish(Ticked(event.n + 1))

        kit.bus.add_sync_listener(again)
        await kit.start()
        with pytest.raises(PublishTooDeep, match=r"clock\.ticked -> clock\.ticked"):
            await kit.bus.publish(Ticked(0))


async def test_publish_many_runs_all_sync_phases_and_then_sends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        sent: list[list[str]] = []
        publish = kit.mq.publish

        async def spy(messages: list[Message]) -> None:
            sent.append([each.event for each in messages])
            await publish(messages)

        monkeypatch.setattr(kit.mq, "publish", spy)
        kit.bus.add_sync_listener(recorder.created)
        kit.bus.add_async_listener(recorder.updated)
        kit.bus.add_async_listener(recorder.ticked)
        await kit.start()
        await kit.bus.publish_many([Ticked(1), UserCreated(), Ticked(2), UserUpdated()])
        assert sent == [["clock.ticked", "clock.ticked", "UserUpdated"]]
        await kit.drain()
        assert recorder.seen[0] == UserCreated()
        assert [each for each in recorder.seen if isinstance(each, int)] == [1, 2]


async def test_an_event_without_subscriptions_costs_no_call_to_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BusKit() as kit:
        await kit.start()

        async def refuse(messages: list[Message]) -> None:
            raise AssertionError("there is no subscription")

        monkeypatch.setattr(kit.mq, "publish", refuse)
        await kit.bus.publish(UserCreated())
        assert kit.published(UserCreated) == [UserCreated()]


async def test_a_subscription_of_another_process_is_seen_within_a_second() -> None:
    clock = FakeClock()
    mq = MemoryQueue(clock=clock)
    await mq.open()
    recorder = Recorder()
    publisher, subscriber = Bus(mq, clock=clock), Bus(mq, clock=clock)
    subscriber.add_async_listener(recorder.created)
    await publisher.start()
    await publisher.publish(UserCreated())
    starting = asyncio.create_task(subscriber.start())
    await clock.advance(1.5)
    await starting
    await publisher.publish(UserCreated())
    assert [each.ready for each in await mq.stats()] == [1]
    await mq.close()


async def test_expired_subscription_cache_is_refreshed_once_and_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with BusKit() as kit:
        await kit.start()
        calls = 0
        registry = kit.mq.registry

        async def counted() -> Registry:
            nonlocal calls
            calls += 1
            return await registry()

        async def refuse(messages: list[Message]) -> None:
            raise AssertionError("there is no subscription")

        monkeypatch.setattr(kit.mq, "registry", counted)
        monkeypatch.setattr(kit.mq, "publish", refuse)
        for _ in range(3):
            await kit.clock.advance(5)
            for _ in range(10):
                await kit.bus.publish(UserCreated())
        assert calls == 3


class Broken:
    """A value of a type that the event's field does not allow."""


@pytest.mark.parametrize("user_id", ["not a uuid", Broken(), None])
async def test_event_with_invalid_fields_fails_publish_before_any_listener(user_id: Any) -> None:  # noqa: ANN401
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_sync_listener(recorder.created)
        kit.bus.add_async_listener(recorder.created)
        await kit.start()
        with pytest.raises(InvalidEvent, match="UserCreated cannot be published"):
            await kit.bus.publish(UserCreated(user_id=user_id))
        assert recorder.seen == []


async def test_a_payload_over_the_limit_is_rejected_before_any_listener() -> None:
    async with BusKit(options=BusOptions(max_payload=1000)) as kit:
        recorder = Recorder()
        kit.bus.add_sync_listener(recorder.created)
        kit.bus.add_async_listener(recorder.created)
        await kit.start()
        with pytest.raises(PublishRejected, match="at most 1000 are allowed"):
            await kit.bus.publish(UserCreated(email="x" * 1000))
        assert recorder.seen == []


async def test_an_explicit_id_is_accepted_once_within_the_window() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.updated)
        await kit.start()
        await kit.bus.publish(UserUpdated(), id="order-17")
        await kit.bus.publish(UserUpdated(), id="order-17")
        assert await kit.drain() == 1
        assert recorder.deliveries[0].id == "order-17"
        await kit.advance(minutes=5)
        await kit.bus.publish(UserUpdated(), id="order-17")
        assert await kit.drain() == 1


async def test_headers_reach_the_handler_and_reserved_headers_are_refused() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.updated)
        await kit.start()
        await kit.bus.publish(UserUpdated(), headers={"tenant": "acme"})
        await kit.drain()
        assert dict(recorder.deliveries[0].headers) == {"tenant": "acme"}
        with pytest.raises(InvalidEvent, match="belong to the bus"):
            await kit.bus.publish(UserUpdated(), headers={"beneath-x": "1"})
        headers: Any = {"n": 1}
        with pytest.raises(InvalidEvent, match="header 'n' must be a str"):
            await kit.bus.publish(UserUpdated(), headers=headers)


async def test_correlation_id_passes_from_the_request_to_the_last_listener() -> None:
    async with BusKit() as kit:
        recorder = Recorder()

        async def relay(event: Ticked, delivery: Delivery) -> None:
            recorder.deliveries.append(delivery)
            await kit.bus.publish(UserUpdated())

        async def sync_relay(event: UserCreated, delivery: Delivery) -> None:
            recorder.deliveries.append(delivery)
            await kit.bus.publish(Ticked(1))

        kit.bus.add_sync_listener(sync_relay)
        kit.bus.add_async_listener(relay, name="relay")
        kit.bus.add_async_listener(recorder.updated)
        await kit.start()
        with kit.bus.correlation("request-9"):
            await kit.bus.publish(UserCreated())
        await kit.drain()
        first, second, third = recorder.deliveries
        assert {each.correlation_id for each in recorder.deliveries} == {"request-9"}
        assert (first.causation_id, second.causation_id, third.causation_id) == (None, first.id, second.id)


async def test_correlation_id_without_a_request_is_the_first_message_id() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.updated)
        await kit.start()
        await kit.bus.publish(UserUpdated())
        await kit.drain()
        assert recorder.deliveries[0].correlation_id == recorder.deliveries[0].id


async def test_task_that_outlives_its_sync_listener_publishes_independently() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        tasks: list[asyncio.Task[None]] = []

        async def spawn(event: UserCreated) -> None:
            tasks.append(asyncio.create_task(kit.bus.publish(Ticked(7))))

        kit.bus.add_sync_listener(spawn)
        kit.bus.add_async_listener(recorder.ticked)
        await kit.start()
        await kit.bus.publish(UserCreated())
        await asyncio.gather(*tasks)
        await kit.drain()
        assert recorder.seen == [7]


async def test_rejected_and_indeterminate_publishes_raise_different_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with BusKit() as kit:
        kit.bus.add_async_listener(Recorder().created)
        await kit.start()

        async def unavailable(messages: list[Message]) -> None:
            raise QueueUnavailable("the queue is down")

        monkeypatch.setattr(kit.mq, "publish", unavailable)
        with pytest.raises(PublishRejected, match="the queue is down"):
            await kit.bus.publish(UserCreated())

        async def indeterminate(messages: list[Message]) -> None:
            raise QueueIndeterminate("the reply was lost")

        monkeypatch.setattr(kit.mq, "publish", indeterminate)
        with pytest.raises(PublishIndeterminate) as lost:
            await kit.bus.publish(UserCreated(), id="mine")
        assert lost.value.id == "mine"
        assert kit.all_published == ()


async def test_delayed_event_is_delivered_when_due_and_never_early() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.ticked)
        await kit.start()
        await kit.bus.publish_delayed(Ticked(2), timedelta(hours=2))
        await kit.bus.publish_delayed(Ticked(1), 60)
        when = datetime.fromtimestamp(kit.clock.time(), UTC) + timedelta(hours=1)
        await kit.bus.publish_scheduled(Ticked(3), when)
        await kit.advance(seconds=59.9)
        assert recorder.seen == []
        await kit.advance(seconds=0.2)
        assert recorder.seen == [1]
        await kit.advance(hours=3)
        assert recorder.seen == [1, 3, 2]


async def test_cancelled_event_is_never_delivered_and_delivered_event_cannot_be_cancelled() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_async_listener(recorder.ticked)
        await kit.start()
        one = await kit.bus.publish_delayed(Ticked(1), 60)
        two = await kit.bus.publish_delayed(Ticked(2), 60)
        assert await kit.bus.cancel(one) is True
        assert await kit.bus.cancel(one) is False
        await kit.advance(hours=1)
        assert recorder.seen == [2]
        assert await kit.bus.cancel(two) is False


async def test_events_with_sync_or_broadcast_listeners_cannot_be_delayed() -> None:
    async with BusKit() as kit:
        recorder = Recorder()
        kit.bus.add_sync_listener(recorder.created)
        kit.bus.add_broadcast_listener(recorder.ticked)
        await kit.start()
        for event in (UserCreated(), Ticked(1)):
            with pytest.raises(InvalidEvent, match="cannot be delayed"):
                await kit.bus.publish_delayed(event, 1)
        with pytest.raises(InvalidEvent, match="must be a number from 0"):
            await kit.bus.publish_delayed(UserUpdated(), -1)
        naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the naive time under test
        with pytest.raises(InvalidEvent, match="no time zone"):
            await kit.bus.publish_scheduled(UserUpdated(), naive)


async def test_start_fails_when_the_queue_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BusKit(options=BusOptions(connect_timeout=0.01)) as kit:

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(kit.mq, "declare", hang)
        with pytest.raises(BusError, match="did not answer within"):
            await kit.start()


def test_event_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UserCreated().email = "x"  # type: ignore[misc]  # the error under test


async def test_renamed_event_is_decoded_under_its_former_name() -> None:
    @dataclass(frozen=True)
    class Before:
        event_name = "thing.made"
        n: int

    @dataclass(frozen=True)
    class After:
        event_name = "thing.created"
        event_aliases = ("thing.made",)
        n: int
        colour: str = "red"

    seen: list[After] = []

    async def on_after(event: After) -> None:
        seen.append(event)

    on_after.__annotations__ = {"event": After, "return": None}
    clock = FakeClock()
    async with BusKit(clock=clock) as kit:
        kit.bus.add_async_listener(on_after, name="listener")
        await kit.start()
        old = Bus(kit.mq, clock=clock)
        await old.start()
        await old.publish(Before(n=5))
        await kit.drain()
    assert seen == [After(n=5, colour="red")]


async def test_caught_failure_of_a_nested_publish_delivers_none_of_its_events() -> None:
    async with BusKit() as kit:
        recorder = Recorder()

        async def reserve(event: UserCreated) -> None:
            await kit.bus.publish(Ticked(1))
            with contextlib.suppress(RuntimeError):
                await kit.bus.publish(UserUpdated())
            await kit.bus.publish(Ticked(2))

        async def refuse(event: UserUpdated) -> None:
            await kit.bus.publish(Ticked(99))
            raise RuntimeError("sold out")

        kit.bus.add_sync_listener(reserve)
        kit.bus.add_sync_listener(refuse)
        kit.bus.add_async_listener(recorder.updated)
        kit.bus.add_async_listener(recorder.ticked)
        await kit.start()
        await kit.bus.publish(UserCreated())
        await kit.drain()
        assert recorder.seen == [1, 2]
        assert kit.published(UserUpdated) == []
