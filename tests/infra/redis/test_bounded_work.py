"""The work of each script does not grow with the contents of the queue, counted at two sizes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import Consumer, ListenerInUse, Message, Outcome
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, subscription
from tests.infra.redis.conftest import Open
from tests.infra.redis.work import counted

FEW, MANY = 1_000, 4_000
"""Numbers of items: more than any script handles in one call, and four times as many."""

BOUND = 12_000
"""The largest number of arguments of all commands of one script: several for each of 1,000 items."""

EVENTS = ("Happened", "Else")

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@pytest.fixture
def own() -> Iterator[servers.RedisServer]:
    server = servers.new_server(servers.any_kind())
    yield server
    server.kill()


async def fill(
    queue: RedisQueue, count: int, *, keys: int = 0, due_at: float | None = None, event: str = "Happened"
) -> None:
    """Publish `count` messages with `keys` different keys; by default each message has a key of its own."""
    for first in range(0, count, 1_000):
        await queue.publish(
            [
                message(str(it), event=event, key=f"k{it % (keys or count)}", due_at=due_at)
                for it in range(first, min(count, first + 1_000))
            ]
        )


async def claim_all(worker: Consumer, count: int, outcome: Outcome | None = None) -> None:
    """Claim `count` deliveries, and settle them if an outcome is given."""
    claimed = 0
    while claimed < count:
        claims = await fetch(worker, limit=min(1_000, count - claimed))
        claimed += len(claims)
        if outcome is not None:
            assert await worker.settle([end(it, outcome, error="no") for it in claims]) == []


async def largest_and_total(
    opened: Open,
    own: servers.RedisServer,
    count: int,
    prepare: Callable[[RedisQueue, int], Awaitable[Consumer]],
    work: Callable[[RedisQueue, Consumer, int], Awaitable[None]],
) -> tuple[int, int]:
    """Return the work of the largest script, and the total of all scripts, in a new namespace."""
    queue = await opened(own.url, namespace=f"of{count}", takeover_patience=0.0)
    worker = await prepare(queue, count)
    async with counted(own) as done:
        await work(queue, worker, count)
    return done.largest, done.total


async def compare(
    opened: Open,
    own: servers.RedisServer,
    prepare: Callable[[RedisQueue, int], Awaitable[Consumer]],
    work: Callable[[RedisQueue, Consumer, int], Awaitable[None]],
) -> None:
    """Check that no script does more work with four times as many items stored."""
    few, _ = await largest_and_total(opened, own, FEW, prepare, work)
    many, _ = await largest_and_total(opened, own, MANY, prepare, work)
    # The size of a SCAN page depends on the server's hash table: small scripts may differ by a few keys.
    assert many <= min(max(few * 2, 3_000), BOUND), (few, many)


@BOTH
async def test_messages_due_at_the_same_time_are_promoted_in_steps(
    opened: Open, own: servers.RedisServer, ordered: bool
) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=ordered)], [])
        due_at = queue.time() + 1.5
        await fill(queue, count, due_at=due_at, keys=50)
        await asyncio.sleep(max(0.0, due_at - queue.time()) + 0.05)
        return await consumer(queue)

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        await queue.stats()
        await queue.publish([message("behind", key="k0")])
        came: list[str] = []
        while len(came) <= count:
            claims = await fetch(worker, limit=200)
            came += ids(claims)
            await worker.settle([end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))])
        assert came[-1] == "behind" or ordered
        of_one_key = [it for it in came if it == "behind" or int(it) % 50 == 0]
        assert of_one_key == [*map(str, range(0, count, 50)), "behind"]

    await compare(opened, own, prepare, work)


@BOTH
async def test_parked_deliveries_are_unparked_in_steps(opened: Open, own: servers.RedisServer, ordered: bool) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=ordered)], [])
        await fill(queue, count)
        worker = await consumer(queue)
        await claim_all(worker, count, Outcome.PARK)
        return worker

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        assert (await queue.stats())[0].parked == count
        assert await worker.unpark({WORK: ["Happened"]}) == count

    await compare(opened, own, prepare, work)


@BOTH
async def test_claims_of_a_dead_worker_are_recovered_in_steps(
    opened: Open, own: servers.RedisServer, ordered: bool
) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=ordered)], [])
        await fill(queue, count)
        victim = await consumer(queue)
        await claim_all(victim, count)
        victim.abandon()
        return await consumer(queue)

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        assert (await queue.stats())[0].in_flight == count
        assert await worker.recover() == count

    await compare(opened, own, prepare, work)


@BOTH
async def test_leaving_worker_releases_its_claims_in_steps(
    opened: Open, own: servers.RedisServer, ordered: bool
) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=ordered)], [])
        await fill(queue, count)
        worker = await consumer(queue)
        await claim_all(worker, count)
        return worker

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        await worker.close()
        assert (await queue.stats())[0].in_flight == 0

    await compare(opened, own, prepare, work)


@BOTH
@pytest.mark.parametrize("event", [None, "Happened"], ids=["all of it", "one event"])
@pytest.mark.parametrize("backlog", ["dead", "discard"])
async def test_a_backlog_is_retired_in_steps(
    opened: Open, own: servers.RedisServer, ordered: bool, event: str | None, backlog: str
) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=ordered, events=("Happened", "Else"))], [])
        await fill(queue, count // 2, keys=50)
        await fill(queue, count // 2, keys=50, event="Else")
        await fill(queue, count // 2, keys=50, due_at=queue.time() + 3600)
        other = await consumer(queue, "other")
        worker = await consumer(queue)
        await worker.close()
        return other

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        if event is not None:
            with pytest.raises(ListenerInUse, match=f"still has {count} deliveries"):
                await queue.retire(WORK, event=event)
        retired = await queue.retire(WORK, event=event, backlog=backlog)  # type: ignore[arg-type]  # of both kinds
        assert retired == (count if event else count // 2 * 3)
        assert len(await queue.dead_letters(limit=MANY * 2)) == (retired if backlog == "dead" else 0)

    await compare(opened, own, prepare, work)


@BOTH
async def test_remaining_events_keep_their_order_when_another_event_is_retired(
    opened: Open, own: servers.RedisServer, ordered: bool
) -> None:
    queue = await opened(own.url)
    await queue.declare([subscription(ordered=ordered, events=("Happened", "Else"))], [])
    for first in range(0, FEW, 100):
        await queue.publish(
            [
                message(f"{it}", event=("Happened", "Else")[it % 2], key=f"k{it // 2 % 9}")
                for it in range(first, first + 100)
            ]
        )
    assert await queue.retire(WORK, event="Else", backlog="discard") == FEW // 2
    await queue.publish([message(f"{FEW}", key=f"k{FEW // 2 % 9}")])
    worker, came = await consumer(queue), list[str]()
    while claims := await fetch(worker, limit=1_000):
        came += ids(claims)
        assert await worker.settle([end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))]) == []
    kept = [*map(str, range(0, FEW + 1, 2))]
    if ordered:
        for key in range(9):
            assert [it for it in came if int(it) // 2 % 9 == key] == [it for it in kept if int(it) // 2 % 9 == key]
    assert sorted(came, key=int) == kept if ordered else came == kept


async def test_mailboxes_are_counted_in_steps(opened: Open, own: servers.RedisServer) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription(ordered=True)], [])
        await fill(queue, count)
        worker = await consumer(queue)
        await claim_all(worker, count // 2)
        await claim_all(worker, count // 2, Outcome.BLOCK)
        return worker

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        [now] = await queue.stats()
        assert (now.in_flight, now.blocked, len(now.blocked_keys), now.ready) == (count // 2, count // 2, count // 2, 0)

    await compare(opened, own, prepare, work)


async def test_dead_letters_are_discarded_in_steps(opened: Open, own: servers.RedisServer) -> None:
    async def prepare(queue: RedisQueue, count: int) -> Consumer:
        await queue.declare([subscription()], [])
        await fill(queue, count)
        worker = await consumer(queue)
        await claim_all(worker, count, Outcome.DEAD)
        return worker

    async def work(queue: RedisQueue, worker: Consumer, count: int) -> None:
        letters = await queue.dead_letters(limit=count)
        assert await queue.retry_dead([it.id for it in letters[:100]]) == 100
        assert await queue.discard_dead([it.id for it in letters[100:]]) == count - 100

    await compare(opened, own, prepare, work)


async def test_expired_ids_are_deleted_in_steps_as_fast_as_ids_are_added(
    opened: Open, own: servers.RedisServer
) -> None:
    queue = await opened(own.url, dedupe_window=0.4)
    await queue.declare([subscription()], [])
    for first in range(0, MANY, 1_000):
        await queue.publish([message(str(it), dedupe=True) for it in range(first, first + 1_000)])
    await asyncio.sleep(0.5)
    async with counted(own) as done:
        for number in range(20):
            await queue.publish([message(f"late {number}", dedupe=True)])
    assert done.largest < 50
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    writer.write(f"ZCARD {{{queue._core.keys.namespace}:0}}:accepted\r\n".encode())
    assert int((await reader.readline())[1:]) <= 20
    writer.close()
    await writer.wait_closed()


async def test_recovery_without_dead_workers_costs_two_small_scripts(opened: Open, own: servers.RedisServer) -> None:
    queue = await opened(own.url, takeover_patience=0.0)
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    await fill(queue, FEW)
    worker, other = await consumer(queue), await consumer(queue)
    await claim_all(worker, FEW)
    async with counted(own) as done:
        assert await other.recover() == 0
        assert await other.unpark({WORK: ["Happened"]}) == 0
    assert len(done.scripts) == 2
    assert done.total < 40
    async with counted(own) as leaving:
        await other.close()
    assert leaving.total < 60


async def test_a_fetch_of_large_messages_is_bounded_in_bytes(opened: Open, own: servers.RedisServer) -> None:
    queue = await opened(own.url)
    await queue.declare([subscription(), subscription("line", ordered=True)], [])
    body = bytes(1024 * 1024)
    messages = [Message(id=f"{it:02}", event="Happened", body=body, published_at=1.0) for it in range(30)]
    await queue.publish(messages)
    worker = await consumer(queue, WORK, "line")
    claims = await worker.fetch({WORK: 100, "line": 100}, wait=0)
    assert sum(len(it.body) for claim in claims for it in claim.deliveries) <= 9 * len(body)
    came: list[str] = []
    while claims:
        await worker.settle([end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))])
        came += ids(claims)
        claims = await worker.fetch({WORK: 100, "line": 100}, wait=0)
    assert sorted(came) == sorted([it.id for it in messages] * 2)


async def test_no_script_reads_more_large_messages_than_it_needs(opened: Open, own: servers.RedisServer) -> None:
    queue = await opened(own.url)
    names = ["one", "two", "three"]
    await queue.declare([subscription(it, events=EVENTS) for it in names], [])
    body, count = b"x" * 600_000, 20
    await queue.publish([Message(id=f"{it}", event="Else", body=body, published_at=1.0) for it in range(count)])
    worker = await consumer(queue, *names)
    async with counted(own) as done:
        assert sum(it.ready for it in await queue.stats()) == count * len(names)
        claims = await worker.fetch({"one": 100}, wait=0)
        await worker.settle([end(it, Outcome.RELEASE) for it in claims])
        await worker.fetch({"one": 100}, wait=0)
        for name in names[1:]:
            assert await queue.retire(name, event="Else", backlog="discard") == count
    # As many as a fetch may return, and for each the next delivery of the queue, which may be due earlier.
    assert max(done.messages) <= 2 * CLAIM_LIMITS.fetch_bytes // len(body)


async def test_mailbox_with_very_many_holes_delays_no_other_claim(opened: Open, own: servers.RedisServer) -> None:
    queue = await opened(own.url)
    await queue.declare([subscription(ordered=True, events=("Happened", "Else"))], [])
    await queue.publish([message("first", key="k", event="Else")])
    await fill(queue, FEW * 2, keys=1)
    await queue.publish([message("last", key="k0", event="Else"), message("other", key="z", event="Else")])
    assert await queue.retire(WORK, event="Happened", backlog="discard") == FEW * 2
    worker = await consumer(queue)
    async with counted(own) as done:
        came: list[str] = []
        async with asyncio.timeout(10):
            while len(came) < 3:
                claims = await worker.fetch({WORK: 5}, wait=1)
                came += ids(claims)
                await worker.settle([end(it) for it in claims])
    assert sorted(came) == ["first", "last", "other"]
    assert done.largest < 5_000
    [now] = await queue.stats()
    assert (now.ready, now.in_flight) == (0, 0)
