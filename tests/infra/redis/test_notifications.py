"""The notification connection is restored after every end of the task that reads from the connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.infra.redis.conftest import Open


def cancel_as_a_handler_may(_: RedisQueue, __: pytest.MonkeyPatch) -> None:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("redis notifications"):
            task.cancel()


def raise_unexpectedly(queue: RedisQueue, patches: pytest.MonkeyPatch) -> None:
    assert queue._notifier is not None
    connection = queue._notifier._connection
    read, failed = connection.read, False

    async def failing() -> Any:  # noqa: ANN401 - stands in for the original
        nonlocal failed
        answer = await read()
        if not failed:
            failed = True
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "what no server says")
        return answer

    patches.setattr(connection, "read", failing)
    connection.close()


@pytest.mark.parametrize("end", [cancel_as_a_handler_may, raise_unexpectedly])
async def test_notifications_resume_after_their_task_was_ended(
    opened: Open, monkeypatch: pytest.MonkeyPatch, end: Callable[[RedisQueue, pytest.MonkeyPatch], None]
) -> None:
    server = servers.new_server(servers.any_kind())
    listening, sending = [await opened(server.url) for _ in range(2)]
    await listening.declare([], ["News"])
    receiver = await listening.receiver(origin="a")
    end(listening, monkeypatch)
    async with asyncio.timeout(20):
        await eventually_notified(listening)
        await sending.broadcast([b"news"], origin="b")
        frames: list[bytes] = []
        while b"news" not in frames:
            frames += (await receiver.receive(300))[0]
    await receiver.close()


async def eventually_notified(queue: RedisQueue) -> None:
    """Wait until the notification connection is restored."""
    assert queue._notifier is not None
    event = asyncio.Event()
    queue._notifier.watch(event)
    await event.wait()  # The restored connection notifies all waiters, in case of a missed notification.
    queue._notifier.unwatch(event)
