"""What a broker still keeps of messages that were handled: nothing."""

import pytest
import redis

from tests.e2e.processes import until
from tests.servers import RedisServer
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.nursery import Child
from tests.torture.opening import Opened

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]

MESSAGES = 50_000
BATCH = 500
WINDOW = 1.0
"""The dedupe window of this test, in seconds."""

BOUND = 5 * 1024 * 1024
"""How many bytes more than an empty queue it may take: the promise."""


def test_after_50000_messages_it_has_as_many_keys_as_an_empty_queue_and_no_more_memory(
    far: Fleet, broker: RedisServer
) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("appendfsync", "no")
        queue = {"dedupe_window": WINDOW}
        far.stop(*joined(far, queue))
        keys, memory = client.dbsize(), dataset(client)
        workers = joined(far, queue)

        async def publish(site: Opened) -> None:
            for n in range(MESSAGES // BATCH // 2):
                await site.bus.publish_many([Job(key="a", n=n)] * BATCH)
                await site.bus.publish_many([Step(key=f"{n}-{each}", n=each) for each in range(BATCH)])

        far.run(publish, queue=queue)
        far.wait_empty()
        far.stop(*workers)
        until(lambda: client.dbsize() <= keys, f"there are {keys} keys again")
        assert dataset(client) - memory < BOUND
        print(f"{keys} keys before and after; {dataset(client) - memory} bytes more")  # noqa: T201


def joined(fleet: Fleet, queue: dict[str, float]) -> list[Child]:
    """Start two workers, and return when the broker knows of both."""
    workers = fleet.pair("quiet", "quiet_key", queue=queue)
    until(lambda: "quiet" in (stats := fleet.stats()) and stats["quiet"].workers == 2, "both have joined")
    return workers


def dataset(client: "redis.Redis") -> int:
    """Return how many bytes the server's data take."""
    memory = client.info("memory")
    assert isinstance(memory, dict)
    return int(memory["used_memory_dataset"])
