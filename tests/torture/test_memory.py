"""Memory of a broker after all messages are handled: only the latest ids of messages from an outbox remain.

`BENEATH_TEST_MESSAGES=1000000` sets the number of messages of the guarantee.
"""

import os
import time

import pytest
import redis

from infra.mq.limits import RESENT_IDS
from tests.e2e.processes import until
from tests.servers import RedisServer
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess
from tests.torture.opening import Opened

MESSAGES = int(os.environ.get("BENEATH_TEST_MESSAGES", "50000"))
BATCH = 500
PATIENCE = 60 + MESSAGES / 1000
"""Timeout of the whole test in seconds."""

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(2 * PATIENCE)]

WINDOW = 1.0
"""The dedupe window of this test, in seconds."""

BOUND = 5 * 1024 * 1024
"""The guaranteed limit in bytes above an empty queue."""


def test_broker_keeps_no_keys_or_memory_after_many_messages(far: Fleet, broker: RedisServer) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("appendfsync", "no")
        queue = {"dedupe_window": WINDOW}
        far.stop(*joined(far, queue))
        keys, memory = keys_of(client), dataset(client)
        workers = joined(far, queue)

        async def publish(site: Opened) -> None:
            for n in range(MESSAGES // BATCH // 2):
                await site.bus.publish_many([Job(key="a", n=n)] * BATCH)
                await site.bus.publish_many([Step(key=f"{n}-{each}", n=each) for each in range(BATCH)])

        began = time.monotonic()
        far.run(publish, queue=queue)
        published = time.monotonic() - began
        far.wait_empty(patience=PATIENCE)
        handled = time.monotonic() - began
        far.stop(*workers)
        window_over = time.monotonic() + 2 * WINDOW
        until(lambda: keys_of(client) == keys or time.monotonic() > window_over, "the dedupe window is over")
        assert keys_of(client) == keys
        more = dataset(client) - memory
        assert more < BOUND
        print(f"{MESSAGES} published in {published:.0f} s and handled in {handled:.0f} s")  # noqa: T201
        print(f"keys before and after: {sorted(keys)}; {more} bytes more")  # noqa: T201


def joined(fleet: Fleet, queue: dict[str, float]) -> list[ForkedProcess]:
    """Start two workers; return when both are registered in the broker."""
    workers = fleet.pair("quiet", "quiet_key", queue=queue)
    until(lambda: "quiet" in (stats := fleet.stats()) and stats["quiet"].workers == 2, "both have joined")
    return workers


def keys_of(client: "redis.Redis") -> set[bytes]:
    """Return the names of all keys except that of the bounded set of ids kept for messages sent again."""
    keys = set(client.scan_iter(count=1000))
    kept = {key for key in keys if key.endswith(b":resent")}
    assert all(client.zcard(key) <= RESENT_IDS for key in kept)
    return keys - kept


def dataset(client: "redis.Redis") -> int:
    """Return the size of the server's data in bytes."""
    memory = client.info("memory")
    assert isinstance(memory, dict)
    return int(memory["used_memory_dataset"])
