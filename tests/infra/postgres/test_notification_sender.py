"""The notifications of a process: one for each change at a low rate, and a bounded number under load."""

import asyncio

import pytest

from infra.clock import FakeClock
from infra.mq import QueueUnavailable
from infra.mq.drivers.sql.postgres.notification_sender import LONGEST_PAUSE, NotificationSender


class CountingServer:
    """Counts notifications; each takes `duration` seconds."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.count = 0
        self.duration = 0.0
        self.error: Exception | None = None

    async def send(self) -> None:
        self.count += 1
        if self.duration:
            await self._clock.sleep(self.duration)
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> CountingServer:
    return CountingServer(clock)


@pytest.fixture
def sender(server: CountingServer, clock: FakeClock) -> NotificationSender:
    sender = NotificationSender(server.send, clock)
    sender.open()
    return sender


async def test_changes_at_a_low_rate_are_each_notified_at_once(
    sender: NotificationSender, server: CountingServer, clock: FakeClock
) -> None:
    server.duration = 0.0005
    for nth in range(1, 51):
        sender.request()
        await clock.settle(2)
        assert server.count == nth
        await clock.advance(1 / 200)


async def test_changes_during_a_pause_share_a_notification(
    sender: NotificationSender, server: CountingServer, clock: FakeClock
) -> None:
    for _ in range(10):
        sender.request()
        await clock.settle(2)
    assert server.count == 1
    await clock.advance(LONGEST_PAUSE)
    assert server.count == 2
    await clock.advance(1.0)
    assert server.count == 2


@pytest.mark.parametrize(("rate", "fewest", "most"), [(1_000, 60, 120), (2_000, 30, 60), (20_000, 10, 12)])
async def test_notifications_become_fewer_as_changes_become_more(
    sender: NotificationSender, server: CountingServer, clock: FakeClock, rate: int, fewest: int, most: int
) -> None:
    for _ in range(rate // 5):
        sender.request()
        await clock.advance(1 / rate)
    assert fewest <= server.count <= most


async def test_slow_notifications_are_sent_for_a_small_part_of_the_time(
    sender: NotificationSender, server: CountingServer, clock: FakeClock
) -> None:
    server.duration = 0.005
    for _ in range(400):
        sender.request()
        await clock.advance(0.001)
    assert 16 <= server.count <= 20  # each takes 5 ms, and the pause after it 15 to 20 ms


async def test_failed_notification_does_not_prevent_the_next(
    sender: NotificationSender, server: CountingServer, clock: FakeClock
) -> None:
    server.error = QueueUnavailable("down")
    for nth in (1, 2):
        sender.request()
        await clock.advance(LONGEST_PAUSE)
        assert server.count == nth


async def test_nothing_is_sent_before_open_and_after_close(server: CountingServer, clock: FakeClock) -> None:
    sender = NotificationSender(server.send, clock)
    sender.request()
    await clock.advance(1.0)
    assert server.count == 0
    sender.open()
    sender.request()
    await clock.settle(2)
    sender.request()
    await sender.close()
    await clock.advance(1.0)
    assert server.count == 1
    assert len(asyncio.all_tasks()) == 1
