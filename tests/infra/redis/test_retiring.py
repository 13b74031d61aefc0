"""Retirement of an event on Redis, at the same time as declarations, publishes and other retirements."""

import asyncio

import pytest

from infra.mq import QueueUnavailable
from infra.mq.drivers.redis import RedisQueue, administration
from infra.mq.drivers.redis.retiring import finish, finish_retiring
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, subscription
from tests.infra.redis.commands import command
from tests.infra.redis.conftest import Open
from tests.infra.redis.proxy import Proxy

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
EVENTS = ("Happened", "Else")


async def handle_all(queue: RedisQueue) -> list[str]:
    """Handle all due deliveries; return the message ids in the order of delivery."""
    worker, came = await consumer(queue), list[str]()
    while claims := await fetch(worker, limit=100):
        came += ids(claims)
        assert await worker.settle([end(it, nth=nth) for it in claims for nth in range(len(it.deliveries))]) == []
    await worker.close()
    return came


async def interrupt(queue: RedisQueue, patch: pytest.MonkeyPatch, event: str) -> None:
    """Begin to retire an event, and lose the connection after the first step."""

    async def lost(*_: object) -> int:
        raise QueueUnavailable("the connection was lost")

    with patch.context() as patched:
        patched.setattr(administration, "finish", lost)
        with pytest.raises(QueueUnavailable):
            await queue.retire(WORK, event=event, backlog="discard")


@BOTH
async def test_declaring_a_retired_event_completes_its_retirement_first(
    opened: Open, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    operator, queue = await opened(), await opened()
    wanted = [subscription(ordered=ordered, events=EVENTS)]
    await queue.declare(wanted, [])
    held = await consumer(queue)
    await queue.publish([message("held", key="h")])
    await fetch(held)
    await queue.publish([message(f"old {it}", key="k") for it in range(300)])
    await interrupt(operator, monkeypatch, "Happened")
    await queue.declare(wanted, [])
    await queue.publish([message("a", key="k"), message("b", key="k")])
    worker = await consumer(queue)
    await worker.recover()
    await worker.close()
    assert await handle_all(queue) == ["a", "b"]


async def test_concurrent_retirements_of_one_subscription_run_in_turn(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await opened(), await opened()
    await first.declare([subscription(events=("Happened", "Else", "More"))], [])
    await first.publish([message(f"{it} {event}", event=event) for it in range(300) for event in (*EVENTS, "More")])
    await second.registry()
    await interrupt(first, monkeypatch, "Happened")
    # The second retirement looked for unfinished retirements before the first one began.
    with monkeypatch.context() as patched:
        found = [0]

        async def nothing_at_first(*arguments: object) -> dict[str, int]:
            found[0] += 1
            return {} if found[0] == 1 else await finish_retiring(*arguments)  # type: ignore[arg-type]  # as it came

        patched.setattr(administration, "finish_retiring", nothing_at_first)
        assert await second.retire(WORK, event="Else", backlog="discard") == 300
    assert await handle_all(first) == [f"{it} More" for it in range(300)]


@BOTH
@pytest.mark.parametrize("event", [None, "Happened"], ids=["whole", "event"])
async def test_retirement_counts_deliveries_that_another_process_removes(
    opened: Open, monkeypatch: pytest.MonkeyPatch, event: str | None, ordered: bool
) -> None:
    operator, queue = await opened(), await opened()
    await operator.declare([subscription(ordered=ordered, events=EVENTS), subscription("other")], [])
    await operator.publish([message(f"{it}", key=f"k{it % 7}") for it in range(300)])
    worker = await consumer(queue, "other")

    async def after_the_worker(*arguments: object) -> int:
        await worker.recover()
        return await finish(*arguments)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(administration, "finish", after_the_worker)
    assert await operator.retire(WORK, event=event, backlog="discard") == 300
    await worker.close()


@BOTH
@pytest.mark.parametrize("phase", ["plan", "line", "body", "end"])
async def test_late_step_of_a_retirement_removes_no_later_message(
    opened: Open, proxy: Proxy, ordered: bool, phase: str
) -> None:
    queue, elsewhere = await opened(proxy.url), await opened()
    wanted = [subscription(ordered=ordered, events=EVENTS)]
    await queue.declare(wanted, [])
    # This call loads the scripts into the server.
    await elsewhere.retire(WORK, event="Else", backlog="discard")
    await queue.publish([message("old", key="k"), message("old, later", key="k", due_at=queue.time() + 60)])
    proxy.hold_back(b"$%d\r\n%s\r\n" % (len(phase), phase.encode()))
    with pytest.raises(QueueUnavailable):
        await queue.retire(WORK, event="Happened", backlog="discard")
    await elsewhere.declare(wanted, [])
    held = await consumer(elsewhere)
    await elsewhere.publish([message("held", key="h")])
    [claim] = await fetch(held)
    due_at = elsewhere.time() + 0.3
    await elsewhere.publish([message("new", key="k"), message("new, later", key="k", due_at=due_at)])
    await proxy.deliver_late()
    assert await held.settle([end(claim)]) == []
    await asyncio.sleep(max(0.0, due_at - elsewhere.time()) + 0.02)
    assert await handle_all(elsewhere) == ["new", "new, later"]


async def test_retirement_does_not_search_the_queue_of_due_mailboxes(opened: Open) -> None:
    server = servers.new_server(servers.any_kind())
    queue = await opened(server.url)
    await queue.declare([subscription(ordered=True, events=EVENTS)], [])
    await queue.publish([message(f"old {it}", key=f"k{it}") for it in range(500)])
    await queue.publish([message("stays", event="Else", key="k500")])
    await command(server, "CONFIG RESETSTAT")
    assert await queue.retire(WORK, event="Happened", backlog="discard") == 500
    assert "cmdstat_lrem" not in await command(server, "INFO commandstats")
    # Keys that are used again are in the queue of due mailboxes twice.
    await queue.publish([message(f"new {it}", event="Else", key=f"k{it}") for it in range(0, 500, 100)])
    assert await handle_all(queue) == ["new 0", "new 100", "new 200", "new 300", "new 400", "stays"]
    assert [(it.ready, it.in_flight) for it in await queue.stats()] == [(0, 0)]


async def test_fetch_without_waiting_skips_any_number_of_emptied_mailboxes(opened: Open) -> None:
    queue = await opened()
    await queue.declare([subscription(ordered=True, events=EVENTS)], [])
    await queue.publish([message(f"old {it}", key=f"k{it}") for it in range(5_000)])
    await queue.publish([message("stays", event="Else", key="z")])
    assert await queue.retire(WORK, event="Happened", backlog="discard") == 5_000
    assert await handle_all(queue) == ["stays"]
