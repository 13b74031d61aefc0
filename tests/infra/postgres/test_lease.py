"""Leases on PostgreSQL: until when a worker owns its claims, and from when they are taken over."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

from infra.mq import QueueUnavailable
from tests.infra.mq.acting import message, subscription
from tests.infra.postgres.queues import MAIL, WORK, consumer, new_store
from tests.postgres_servers import PostgresServer

LEASE = 0.5


async def test_takeover_from_a_disconnected_worker_waits_a_fifth_of_a_lease(
    server: PostgresServer,
) -> None:
    async with new_store(server) as store:
        (queue, _), (elsewhere, _) = await store.open(lease=LEASE), await store.open(lease=LEASE)
        await queue.declare([subscription(MAIL, ordered=True)], [])
        victim, rescuer = await consumer(queue), await consumer(elsewhere)
        assert await asyncio.to_thread(victim.renew)
        await queue.publish([message("a")])
        assert len(await victim.fetch({MAIL: 1}, wait=0)) == 1
        until = victim.valid_until
        while not await rescuer.recover():
            await asyncio.to_thread(rescuer.renew)
        assert time.monotonic() >= until + LEASE / 5
        assert victim.valid_until == until
        assert not await asyncio.to_thread(victim.renew)
        assert victim.lost


async def test_worker_with_expired_lease_continues_without_a_takeover(server: PostgresServer) -> None:
    async with new_store(server) as store:
        queue, _ = await store.open(lease=LEASE)
        worker = await consumer(queue)
        until = worker.valid_until
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        assert await asyncio.to_thread(worker.renew)
        assert worker.valid_until > until


async def test_kept_claim_is_renewed_when_the_lease_thread_is_notified_immediately(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_until = "SELECT lease_until FROM beneath_worker"
    run_elsewhere = asyncio.run_coroutine_threadsafe

    def at_once(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Future[Any]:
        running = run_elsewhere(work, loop)
        run_elsewhere(asyncio.sleep(0), loop).result()
        return running

    async with new_store(server) as store:
        queue, _ = await store.open(lease=LEASE)
        await queue.declare([subscription(WORK)], [])
        worker = await consumer(queue)
        await queue.publish([message("a")])
        [claim] = await worker.fetch({WORK: 1}, wait=0)
        before = await server.fetch(lease_until, database=store.database)
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", at_once)
        worker.keep(claim)
        await worker.close()
        async with asyncio.timeout(10):
            while await server.fetch(lease_until, database=store.database) == before:  # noqa: ASYNC110  # on the server
                await asyncio.sleep(0.05)


async def test_failed_start_of_the_lease_thread_is_retried_by_the_next_worker(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "beneath-queue-lease":
            raise RuntimeError("can't start new thread")
        honest(thread)

    async with new_store(server) as store:
        queue, _ = await store.open(lease=LEASE)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(QueueUnavailable, match="cannot start a thread"):
                await consumer(queue)
        workers = await asyncio.gather(*(consumer(queue) for _ in range(5)))
        assert [await asyncio.to_thread(it.renew) for it in workers] == [True] * 5
        assert [it.name for it in threading.enumerate()].count("beneath-queue-lease") == 1


@pytest.mark.parametrize("steps", range(1, 13, 3))
@pytest.mark.parametrize("every", [False, True], ids=["once", "every task"])
async def test_close_cancelled_at_any_await_leaves_no_connection_or_thread(
    server: PostgresServer, steps: int, every: bool
) -> None:
    async with new_store(server) as store:
        queue, db = await store.open(lease=LEASE)
        await queue.declare([subscription(WORK)], [])
        await consumer(queue)
        before = asyncio.all_tasks()
        closing = asyncio.ensure_future(queue.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - (before - {closing}) if every else {closing}:
            task.cancel()
        await asyncio.wait((closing,))
        assert "beneath-queue-lease" not in [it.name for it in threading.enumerate()]
        await db.close()
        connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
        async with asyncio.timeout(10):
            while (await server.fetch(connections, store.database))[0][0]:  # noqa: ASYNC110  # on the server
                await asyncio.sleep(0.02)
