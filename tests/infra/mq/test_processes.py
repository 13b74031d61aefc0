"""Several processes on one SQLite file, some of them killed within an operation."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from infra.mq import QueueClosed
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import presence
from tests.infra.mq.acting import consumer, done, handle_all, ids, message, messages, subscription

Spawn = Callable[[str], Awaitable[Process]]
WANTS = {"work": 100, "mail": 100}


@pytest.fixture
async def spawn(path: Path) -> AsyncIterator[Spawn]:
    """Return a function that starts `worker_process` in a mode."""
    processes: list[Process] = []

    async def start(mode: str) -> Process:
        arguments = ("-m", "tests.infra.mq.worker_process", str(path), mode)
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> list[str]:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().split()


async def tell(process: Process, text: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n".encode())
    await process.stdin.drain()


async def test_claims_of_a_killed_process_alone_are_taken_over_and_counted(
    queue: SqlQueue, path: Path, spawn: Spawn
) -> None:
    await queue.publish([message(f"m{each}", key="k") for each in range(12)])
    holder = await spawn("hold")
    held = await line(holder)
    worker = await consumer(queue)
    assert await worker.recover() == 0, "its process lives"
    assert not ids(await worker.fetch({"mail": 1}, wait=0))
    holder.kill()
    await holder.wait()
    assert len(held) == 3 + 10
    assert await worker.recover() == len(held)
    assert await worker.recover() == 0
    claims = await worker.fetch(WANTS, wait=0)
    solo = [it.deliveries[0] for it in claims if not it.ordered]
    assert [(it.takeovers, it.crashes) for it in solo] == [(0, 1), (1, 0), (1, 0)] + [(0, 0)] * 9
    (mailbox,) = [it for it in claims if it.ordered]
    assert {it.takeovers for it in mailbox.deliveries} == {1}
    files = list((path.parent / f"{path.name}.workers").glob("*.lock"))
    assert len(files) == 1, "only the living one's file is left"


async def test_concurrent_recoveries_take_over_a_dead_worker_once(
    queue: SqlQueue, open_queue: Callable[[], Awaitable[tuple[SqlQueue, object]]], spawn: Spawn
) -> None:
    await queue.publish([message(f"m{each}", key="k") for each in range(3)])
    holder = await spawn("hold")
    await line(holder)
    holder.kill()
    await holder.wait()
    workers = [await consumer(queue), await consumer((await open_queue())[0])]
    assert sum(await asyncio.gather(*(it.recover() for it in workers))) == 6
    claims = await workers[0].fetch(WANTS, wait=0)
    assert {it.takeovers + it.crashes for claim in claims for it in claim.deliveries} == {1}


async def test_concurrent_claims_do_not_overlap_and_keep_each_key_in_order(queue: SqlQueue, spawn: Spawn) -> None:
    sent = messages(600, keys=20)
    await queue.publish(sent)
    processes = [await spawn("drain") for _ in range(2)]
    assert [await line(it) for it in processes] == [["ready"], ["ready"]]
    await asyncio.gather(*(tell(it) for it in processes))
    shares = await asyncio.gather(*(line(it) for it in processes))
    assert all(shares), "both had work"
    handled = [each.split(":") for share in shares for each in share]
    everything = sorted(it.id for it in sent)
    assert sorted(name for subscription, _, name in handled if subscription == "work") == everything
    # The fences show the order in which all processes claimed one mailbox.
    mail = sorted((int(fence), place, name) for place, (kind, fence, name) in enumerate(handled) if kind == "mail")
    keys = {it.id: it.ordering_key for it in sent}
    by_key = defaultdict(list)
    for _, _, name in mail:
        by_key[keys[name]].append(name)
    assert by_key == {key: [it.id for it in sent if it.ordering_key == key] for key in set(keys.values())}


async def test_waiting_process_is_notified_of_a_publish(queue: SqlQueue, spawn: Spawn) -> None:
    waiter = await spawn("wait")
    assert await line(waiter) == ["ready"]
    began = asyncio.get_running_loop().time()
    await queue.publish([message("m")])
    assert await line(waiter) == ["m"]
    assert asyncio.get_running_loop().time() - began < 5


async def test_process_killed_within_a_group_has_stored_nothing(queue: SqlQueue, spawn: Spawn) -> None:
    dying = await spawn("die")
    assert await line(dying) == ["dying"]
    await dying.wait()
    await queue.publish([message("after", key="k")])
    worker = await consumer(queue)
    assert await handle_all(worker, WANTS) == ["after", "after"]


async def test_a_broadcast_reaches_another_process_in_order(queue: SqlQueue, spawn: Spawn) -> None:
    receiver = await queue.receiver(origin="me")
    sender = await spawn("broadcast")
    assert await line(sender) == ["ready"]
    heard: list[bytes] = []
    for each in ("one", "two", "three"):
        await tell(sender, each)
        await line(sender)
    while len(heard) < 3:
        frames, gap = await receiver.receive(5)
        assert not gap
        heard += frames
    assert heard == [b"one", b"two", b"three"]
    await receiver.close()


async def test_worker_considered_dead_notices_the_loss_of_its_lease(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "MISSING_PATIENCE", 0.0)
    victim, other = await consumer(queue, "victim"), await consumer(queue, "other")
    await queue.publish([message("m")])
    claims = await victim.fetch({"work": 1}, wait=0)
    (path.parent / f"{path.name}.workers" / "victim.lock").unlink()
    assert await other.recover() == 1
    assert await victim.settle([done(claims)[0]]) == [], "done is accepted from an earlier owner"
    with pytest.raises(QueueClosed):
        await victim.fetch({"work": 1}, wait=0)
    assert victim.lost
    assert not victim.renew()


async def test_lock_files_of_unregistered_workers_are_removed(queue: SqlQueue, path: Path) -> None:
    folder = path.parent / f"{path.name}.workers"
    worker = await consumer(queue, "me")
    (folder / "leftover.lock").touch()
    await worker.recover()
    assert [it.name for it in folder.iterdir()] == ["me.lock"]
    await worker.close()
    assert list(folder.iterdir()) == []


async def test_new_event_is_declared_once_by_concurrent_processes(
    queue: SqlQueue, open_queue: Callable[[], Awaitable[tuple[SqlQueue, object]]]
) -> None:
    queues = [queue, *[(await open_queue())[0] for _ in range(3)]]
    await asyncio.gather(*(it.declare([subscription("new", events=["New"])], ["Dropped"]) for it in queues))
    await queue.publish([message("m", event="New")])
    (stats,) = [it for it in await queue.stats() if it.name == "new"]
    assert stats.ready == 1
