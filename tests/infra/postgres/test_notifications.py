"""Notifications and polling resume after a handler has cancelled all tasks."""

import asyncio

from tests.infra.postgres.queues import new_store, queue_dialect
from tests.postgres_servers import PostgresServer

NAMES = {"queue poll", "queue notifications"}


def running() -> set[str]:
    return {it.get_name() for it in asyncio.all_tasks() if it.get_name() in NAMES and not it.cancelling()}


async def test_notifications_and_polling_resume_after_their_tasks_were_cancelled(server: PostgresServer) -> None:
    async with new_store(server) as store:
        queue, _ = await store.open()
        notifier = queue_dialect(queue)._notifier
        await asyncio.sleep(0)  # The tasks start.
        assert running() == NAMES
        before = notifier.interruptions
        for task in asyncio.all_tasks():
            if task.get_name() in NAMES:
                task.cancel()
        async with asyncio.timeout(20):
            while running() != NAMES or notifier.interruptions == before:  # noqa: ASYNC110 - a count, which no event tells
                await asyncio.sleep(0.01)
            woken = asyncio.Event()
            notifier.add(woken)
            await woken.wait()
        await queue.close()
        assert running() == set()
