"""When a consumer of a database polls before it claims: a poll takes no lock and writes nothing."""

from collections import Counter

import pytest

from infra.mq import Consumer
from infra.mq.drivers.sql import SqlQueue
from tests.infra.mq.acting import consumer, ids, message, subscription
from tests.infra.mq.conftest import OpenQueue

WORK, MAIL, BOTH = {"work": 10}, {"mail": 10}, {"work": 10, "mail": 10}


@pytest.fixture
async def queue(open_queue: OpenQueue) -> SqlQueue:
    queue, _ = await open_queue()
    await queue.declare([subscription("work", events=["Worked"]), subscription("mail", events=["Mailed"])], [])
    return queue


@pytest.fixture
def calls(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the queue's consumers polled and claimed."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        honest = getattr(queue._dialect.workers, name)

        async def counting(*args: object, **named: object) -> object:
            counted[name] += 1
            return await honest(*args, **named)

        monkeypatch.setattr(queue._dialect.workers, name, counting)

    count("next_due")
    count("claim")
    return counted


async def fetched(worker: Consumer, wants: dict[str, int], calls: Counter[str]) -> tuple[int, int, int]:
    """Fetch once; return how many messages came, and how many polls and claims it took."""
    calls.clear()
    found = ids(await worker.fetch(wants, wait=0))
    return len(found), calls["next_due"], calls["claim"]


async def test_listener_with_a_backlog_claims_without_polling(queue: SqlQueue, calls: Counter[str]) -> None:
    worker = await consumer(queue)
    await queue.publish([message(f"m{nth}", event="Worked") for nth in range(40)])
    assert await fetched(worker, BOTH, calls) == (10, 1, 1)
    assert await fetched(worker, BOTH, calls) == (10, 0, 1)
    assert await fetched(worker, MAIL, calls) == (0, 1, 0)
    assert await fetched(worker, BOTH, calls) == (10, 0, 1)


async def test_listener_without_work_only_polls_beside_a_backlog(queue: SqlQueue, calls: Counter[str]) -> None:
    worker = await consumer(queue)
    await queue.publish([message(f"m{nth}", event="Worked") for nth in range(20)])
    assert await fetched(worker, WORK, calls) == (10, 1, 1)
    for _ in range(3):
        assert await fetched(worker, MAIL, calls) == (0, 1, 0)
    await queue.publish([message("m", event="Mailed")])
    assert await fetched(worker, MAIL, calls) == (1, 1, 1)


@pytest.mark.parametrize(("backlog", "empty_claims"), [(9, 0), (10, 1)])
async def test_exhausted_backlog_is_polled_for_again(
    queue: SqlQueue, calls: Counter[str], backlog: int, empty_claims: int
) -> None:
    worker = await consumer(queue)
    await queue.publish([message(f"m{nth}", event="Worked") for nth in range(backlog)])
    assert await fetched(worker, BOTH, calls) == (backlog, 1, 1)
    for _ in range(empty_claims):
        assert await fetched(worker, BOTH, calls) == (0, 0, 1)
    for _ in range(3):
        assert await fetched(worker, BOTH, calls) == (0, 1, 0)
