"""Events that expire: no attempt begins once their lifetime has passed."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from bus import Bus, Delivery, InvalidEvent, Retry
from bus.codec import decode_frame
from bus.metrics import ListenerMetrics
from bus.testing import BusKit
from infra.clock import FakeClock
from infra.db import Database
from tests.bus.events import Deposited, Ticked
from tests.bus.site import opened_site

ONE_RETRY = Retry(max_attempts=2, delays=(100,))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSent:
    """An event whose class has a lifetime of ten minutes."""

    event_lifetime: ClassVar[timedelta] = timedelta(minutes=10)

    code: str


class Received:
    """Listeners that record what they receive; `fails` makes every attempt fail."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.fails = False

    async def ticked(self, event: Ticked, delivery: Delivery) -> None:
        self.record(delivery)

    async def sent(self, event: CodeSent, delivery: Delivery) -> None:
        self.record(delivery)

    async def deposited(self, event: Deposited, delivery: Delivery) -> None:
        self.record(delivery)

    def record(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self.fails:
            raise RuntimeError("out of order")


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
async def kit(received: Received) -> AsyncIterator[BusKit]:
    async with BusKit() as kit:
        kit.bus.add_async_listener(received.ticked, name="ticks", retry=ONE_RETRY)
        kit.bus.add_async_listener(received.sent, name="codes", retry=ONE_RETRY)
        kit.bus.add_async_ordered_listener(received.deposited, name="deposits", retry=ONE_RETRY)
        await kit.start()
        yield kit


def metrics(kit: BusKit, listener: str = "ticks") -> ListenerMetrics:
    return kit.bus.metrics.listeners[listener]


@pytest.mark.parametrize(("waited", "handled"), [(59.999, 1), (60.0, 0), (3600.0, 0)])
async def test_no_attempt_begins_after_the_lifetime(
    kit: BusKit, received: Received, waited: float, handled: int
) -> None:
    await kit.bus.publish(Ticked(1), expires_in=60)
    await kit.clock.advance(waited)
    await kit.drain()
    assert len(received.deliveries) == handled
    assert (metrics(kit).handled, metrics(kit).expired) == (handled, 1 - handled)
    assert await kit.dead_letters() == []
    assert [each.ready for each in await kit.mq.stats()] == [0, 0, 0]


async def test_expired_delivery_is_logged_with_its_failures(kit: BusKit, received: Received) -> None:
    received.fails = True
    await kit.bus.publish(Ticked(1), id="late", expires_in=timedelta(seconds=60))
    with capture_logs() as logs:
        await kit.advance(seconds=100)
    [line] = [each for each in logs if each["event"] == "delivery expired"]
    assert (line["log_level"], line["failures"], len(kit.failures)) == ("warning", 1, 1)
    assert len(received.deliveries) == 1
    assert (metrics(kit).failed, metrics(kit).expired, metrics(kit).dead) == (1, 1, 0)


async def test_running_handler_is_not_ended_by_the_expiry() -> None:
    async with BusKit() as kit:
        ended: list[float] = []

        async def slow(event: Ticked) -> None:
            await kit.clock.advance(30)
            ended.append(kit.clock.time())

        kit.bus.add_async_listener(slow, name="ticks")
        await kit.start()
        await kit.bus.publish(Ticked(1), expires_in=10)
        await kit.drain()
        assert (len(ended), metrics(kit).handled, metrics(kit).expired) == (1, 1, 0)


async def test_lifetime_of_the_class_applies_unless_the_publisher_sets_another(kit: BusKit, received: Received) -> None:
    await kit.bus.publish_many([CodeSent(code="1"), CodeSent(code="2")])
    await kit.bus.publish(CodeSent(code="3"), expires_in=3600)
    await kit.clock.advance(600)
    await kit.drain()
    assert metrics(kit, "codes").expired == 2
    assert len(received.deliveries) == 1


async def test_lifetime_of_a_delayed_event_begins_when_it_is_due(kit: BusKit, received: Received) -> None:
    start = kit.clock.time()
    past = datetime.fromtimestamp(start - 5000, UTC)
    await kit.bus.publish_delayed(Ticked(1), 1000, expires_in=60)
    await kit.bus.publish_scheduled(Ticked(2), past, expires_in=60)
    await kit.bus.publish_scheduled(Ticked(3), datetime.fromtimestamp(start + 1000, UTC), expires_in=60)
    await kit.advance(seconds=1000)
    assert sorted(each.expires_at or 0.0 for each in received.deliveries) == [start + 60, start + 1060, start + 1060]


async def test_ordering_key_continues_after_an_expired_event(kit: BusKit, received: Received) -> None:
    await kit.bus.publish(Deposited(account="a", amount=1), expires_in=60)
    await kit.bus.publish(Deposited(account="a", amount=2))
    await kit.clock.advance(60)
    await kit.drain()
    assert [each.expires_at for each in received.deliveries] == [None]
    assert metrics(kit, "deposits").expired == 1


async def test_handler_sees_when_its_event_expires_and_no_header_of_the_bus(kit: BusKit, received: Received) -> None:
    await kit.bus.publish(Ticked(1), headers={"tenant": "a"}, expires_in=60)
    await kit.bus.publish(Ticked(2))
    await kit.drain()
    first, second = received.deliveries
    assert (first.expires_at, dict(first.headers)) == (kit.clock.time() + 60, {"tenant": "a"})
    assert (second.expires_at, dict(second.headers)) == (None, {})


async def test_events_of_sync_listeners_expire_by_their_own_lifetime() -> None:
    async with BusKit() as kit:

        async def on_tick(event: Ticked) -> None:
            await kit.bus.publish(CodeSent(code="1"))

        async def on_code(event: CodeSent, delivery: Delivery) -> None:
            seen.append(delivery)

        seen: list[Delivery] = []
        kit.bus.add_sync_listener(on_tick)
        kit.bus.add_async_listener(on_code, name="codes")
        await kit.start()
        await kit.bus.publish(Ticked(1), expires_in=1)
        await kit.drain()
        assert [each.expires_at for each in seen] == [kit.clock.time() + 600]


async def test_lifetime_is_measured_by_the_clock_of_the_queue() -> None:
    queue_clock, fast = FakeClock(), FakeClock()
    await fast.advance(7200)
    handled: list[int] = []

    async def on_tick(event: Ticked) -> None:
        handled.append(event.n)

    async with BusKit(clock=queue_clock) as kit:
        kit.bus.add_async_listener(on_tick, name="ticks")
        await kit.start()
        publisher = Bus(kit.mq, clock=fast)
        await publisher.start()
        await publisher.publish(Ticked(1), expires_in=60)
        await publisher.publish(Ticked(2), expires_in=60)
        assert await kit.drain() == 2
        await publisher.publish(Ticked(3), expires_in=60)
        await kit.clock.advance(60)
        await kit.drain()
        await publisher.close()
    assert handled == [1, 2]


async def test_expiry_is_counted_by_the_database_until_the_queue_is_reached(migrated_copy: Path) -> None:
    async with opened_site(migrated_copy) as site:
        bus = await site.process()
        site.mq.unreached = site.mq.down = True
        before = time.time()
        async with site.db.transaction():
            await bus.publish(Ticked(1), expires_in=60)
        async with site.db.read() as session:
            body = await session.scalar(text("SELECT body FROM beneath_outbox"))
        expires_at = float(decode_frame(body).headers["beneath-expires-at"])
        assert before + 59 <= expires_at <= time.time() + 61


async def test_expired_delivery_of_a_once_listener_ends_without_a_transaction(tmp_path: Path) -> None:
    handled: list[int] = []

    async def on_tick(event: Ticked) -> None:
        handled.append(event.n)

    # The database is never opened: a transaction would fail.
    async with BusKit(db=Database(f"sqlite:///{tmp_path / 'beneath.db'}", busy_timeout=30)) as kit:
        kit.bus.add_async_listener(on_tick, name="ticks", once=True)
        await kit.start()
        await kit.bus.publish(Ticked(1), expires_in=60)
        await kit.clock.advance(60)
        await kit.drain()
        assert (handled, metrics(kit).expired) == ([], 1)


LIFETIMES = [0, -1, float("nan"), float("inf"), "60", True, b"1", timedelta(0), timedelta(days=-1), 101 * 366 * 86400]


@pytest.mark.parametrize("lifetime", LIFETIMES, ids=repr)
async def test_invalid_lifetime_is_refused(kit: BusKit, lifetime: object) -> None:
    wrong = cast("Any", lifetime)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: kit.bus.publish(Ticked(1), expires_in=wrong),
        lambda: kit.bus.publish_delayed(Ticked(1), 1, expires_in=wrong),
        lambda: kit.bus.publish_scheduled(Ticked(1), datetime.now(UTC), expires_in=wrong),
    ]
    for call in calls:
        with pytest.raises(InvalidEvent, match=r"expires_in \(in seconds\) must be a number more than 0"):
            await call()
    assert await kit.drain() == 0


@pytest.mark.parametrize("lifetime", LIFETIMES, ids=repr)
def test_invalid_lifetime_of_an_event_class_is_refused(lifetime: object) -> None:
    cls: type = dataclass(frozen=True)(type("Odd", (), {"event_lifetime": lifetime, "__annotations__": {}}))

    async def handler(event: object) -> None: ...

    handler.__annotations__["event"] = cls
    with pytest.raises(InvalidEvent, match=r"Odd: event_lifetime \(in seconds\) must be a number more than 0"):
        BusKit().bus.add_async_listener(handler, name="l")
