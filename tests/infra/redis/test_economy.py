"""The cost of the Redis driver, counted in keys and round trips."""

import asyncio
import contextlib

import pytest

from infra.mq import Outcome, QueueClosed
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, subscription
from tests.infra.redis.commands import calls_of, command
from tests.infra.redis.conftest import Open


async def keys_of(server: servers.RedisServer) -> int:
    return int((await command(server, "DBSIZE"))[1:])


async def test_emptied_queue_has_as_many_keys_as_a_new_queue(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url, dedupe_window=0.05)
    await queue.declare([subscription(), subscription("line", ordered=True)], ["News"])
    worker = await consumer(queue, WORK, "line")
    await queue.publish([message("first", key="k")])
    for name in (WORK, "line"):
        await worker.settle([end(it) for it in await fetch(worker, name)])
    empty = await keys_of(server)
    for number in range(40):
        due = queue.time() + 0.02 if number % 4 == 0 else None
        await queue.publish([message(str(number), key=f"k{number % 7}", dedupe=True, due_at=due)])
    await queue.publish([message("cancelled", due_at=queue.time() + 60)])
    assert await queue.cancel("cancelled")
    turns = iter([Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.DEAD] * 6)
    while (await queue.stats())[0].scheduled or any(it.ready + it.parked for it in await queue.stats()):
        for name in (WORK, "line"):
            for claim in await worker.fetch({name: 5}, wait=0.01):
                outcome = next(turns, Outcome.DONE)
                final = outcome in {Outcome.DONE, Outcome.DEAD}
                count = len(claim.deliveries) if final else 1
                ends = [end(claim, outcome, nth=nth, error="no") for nth in range(count)]
                assert await worker.settle(ends) == []
            await worker.unpark({name: ["Happened"]})
    await queue.discard_dead([it.id for it in await queue.dead_letters(limit=1000)])
    await asyncio.sleep(0.1)
    assert await fetch(worker) == []
    assert await fetch(worker, "line") == []
    assert await keys_of(server) == empty


@pytest.mark.parametrize("end", ["closed while it begins to wait", "killed while it waits"])
async def test_closed_or_dead_worker_leaves_no_notification_keys(opened: Open, end: str) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url, lease=0.2, takeover_patience=0.0)
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    empty = await keys_of(server)
    worker = await consumer(queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1, "line": 1}, wait=5))
    if end == "killed while it waits":
        async with asyncio.timeout(10):
            # Leases, workers, waiters, and one list of waiting consumers for each subscription.
            while await keys_of(server) < empty + 5:
                pass
        worker.abandon()
        worker.wake()
        with contextlib.suppress(QueueClosed):
            await fetching
        rescuer = await consumer(queue)
        await rescuer.recover()
        await rescuer.close()
    else:
        await asyncio.sleep(0.001)
        worker.wake()
        await fetching
        await worker.close()
    assert await keys_of(server) == empty


async def test_calls_made_during_a_round_trip_share_the_next_round_trip(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    await queue.publish([message("warm up")])
    await queue.publish([message("warm"), message("up")])
    before = await calls_of(server, "evalsha")
    await asyncio.gather(*(queue.publish([message(f"{number:03}")]) for number in range(150)))
    assert await calls_of(server, "evalsha") - before == 2
    assert ids(await fetch(await consumer(queue)))[3:] == [f"{number:03}" for number in range(97)]


async def test_single_message_reaches_a_waiting_worker_without_another_round_trip(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    await queue.publish([message("warm up")])
    await worker.settle([end(it) for it in await fetch(worker)])
    fetching = asyncio.ensure_future(worker.fetch({WORK: 5}, wait=5))
    await asyncio.sleep(0.05)
    before = await calls_of(server, "evalsha")
    await queue.publish([message("a")])
    assert ids(await fetching) == ["a"]
    assert await calls_of(server, "evalsha") - before == 1
    assert (await queue.stats())[0].in_flight == 1


@pytest.mark.parametrize("why", ["paused", "closed", "dead", "awake", "something was due before"])
async def test_message_is_not_handed_over_to_a_worker_that_is_not_waiting(opened: Open, why: str) -> None:
    queue = await opened()
    await queue.declare([subscription()], [])
    worker = await consumer(queue)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 5}, wait=0.3 if why == "awake" else 5))
    await asyncio.sleep(0.05)
    match why:
        case "paused":
            await queue.pause(WORK)
        case "closed":
            worker.wake()
            await fetching
            await worker.close()
        case "dead":
            worker.abandon()
        case "awake":
            assert await fetching == []
        case _:
            await queue.pause(WORK)
            await queue.publish([message("before")])
            await queue.resume(WORK)
    await queue.publish([message("a")])
    if why == "something was due before":
        assert ids(await fetching)[0] == "before"
        return
    assert (await queue.stats())[0].in_flight == 0
    worker.wake()
    await asyncio.gather(fetching, return_exceptions=True)


async def test_waiting_worker_never_misses_a_message_when_another_is_notified(opened: Open) -> None:
    queues = [await opened(poll=30.0) for _ in range(3)]
    await queues[0].declare([subscription(), subscription("other")], [])
    workers = [await consumer(it, WORK, "other") for it in queues]
    came: list[str] = []

    async def work(number: int) -> None:
        worker = workers[number]
        while len(came) < 400:
            claims = await worker.fetch({WORK: 2, "other": 1}, wait=20)
            came.extend(ids(claims))
            await worker.settle([end(it) for it in claims])
            if len(came) >= 400:
                for each in workers:
                    each.wake()

    working = [asyncio.ensure_future(work(number)) for number in range(3)]
    for number in range(200):
        await queues[number % 3].publish([message(str(number))])
        if number % 5 == 0:
            await asyncio.sleep(0.002)
    async with asyncio.timeout(15):
        await asyncio.gather(*working)
    assert sorted(came) == sorted([str(number) for number in range(200)] * 2)


async def test_repeated_declaration_costs_one_round_trip(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    wanted = [subscription(f"listener {it}") for it in range(50)]
    await queue.declare(wanted, ["News"])
    await command(server, "CONFIG RESETSTAT")
    await queue.declare(wanted, ["News"])
    assert (await calls_of(server, "hmget"), await calls_of(server, "evalsha")) == (1, 0)
