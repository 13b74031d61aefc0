"""Faults of the broker: outages, kills, flushes and failing connections."""

import time
from typing import Any

import pytest
import redis

from tests.breakable_proxy import FAULTS, BreakableProxy
from tests.e2e.processes import until
from tests.servers import LogTail, RedisServer
from tests.torture.checker import check, duplicates, lost, out_of_order, overlapping, phantoms, repeated
from tests.torture.events import Chime, Job, Step
from tests.torture.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]

KEYS = [f"key-{number}" for number in range(20)]
LISTENERS = ("flaky", "sibling", "done")
SECONDS = 20.0
"""Seconds within which every process must recover."""


COUNT = 100
"""The number of steps and jobs of each key that are published under load."""

LOAD: dict[str, Any] = {
    "program": "persistent",
    "work": False,
    "arguments": {"keys": KEYS, "count": COUNT, "rate": 300},
}


def wait_handled(fleet: Fleet, more_than: float) -> None:
    until(lambda: len(fleet.runs("done", "end")) > more_than, f"more than {more_than:g} jobs are handled")


def both(n: int) -> list[Step | Job]:
    return [*(Step(key=key, n=n) for key in KEYS), *(Job(key=key, n=n) for key in KEYS)]


def check_all(fleet: Fleet) -> None:
    lines = fleet.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "sibling", ordered=False) == []
    assert check(lines, "done", ordered=False) == []
    assert fleet.dead_letters() == []


def test_events_committed_during_a_broker_outage_are_relayed_in_order_afterwards(
    far: Fleet, broker: RedisServer
) -> None:
    far.publish(both(0), listeners=LISTENERS)
    worker = far.started(*LISTENERS)
    until(lambda: len(far.runs("flaky", "end")) == len(KEYS), "all goes well")
    far.wait_empty()
    broker.kill()
    # One publisher ran before the outage; the other starts now, without access to the registry.
    publishers = [
        far.start(program="offline", work=False, arguments={"keys": keys, "count": 20})
        for keys in (KEYS[:10], KEYS[10:])
    ]
    for each in publishers:
        assert each.wait() == 0, each.stderr
    [(waiting,)] = far.rows.fetch("SELECT count(*) FROM beneath_outbox")
    assert waiting == 2 * 20 * len(KEYS)
    assert len(far.runs("flaky", "end")) == len(KEYS)

    broker.start()
    started_at = time.monotonic()
    done = 21 * len(KEYS)
    until(lambda: len(far.runs("flaky", "end")) == done, "what waited is handled", timeout=SECONDS)
    print(f"{waiting} events flowed {time.monotonic() - started_at:.1f} s after the start")  # noqa: T201
    far.wait_empty()
    far.stop(worker)
    check_all(far)


def test_broker_restarted_under_load_loses_no_acknowledged_message(far: Fleet, broker: RedisServer) -> None:
    workers = far.pair(*LISTENERS)
    publisher = far.start(**LOAD)
    for share in (0.2, 0.4, 0.6, 0.8):
        wait_handled(far, share * COUNT * len(KEYS))
        broker.kill()
        broker.start()
    assert publisher.wait() == 0, publisher.stderr
    accepted_at = time.monotonic()
    until(lambda: len(far.runs("flaky", "end")) >= COUNT * len(KEYS), "all is handled", timeout=SECONDS)
    print(f"all was handled {time.monotonic() - accepted_at:.1f} s after the last was accepted")  # noqa: T201
    far.wait_empty()
    far.stop(*workers)
    check_all(far)
    insisted = len([each for each in far.journal.of("note") if each.text.startswith("Publish")])
    print(f"{insisted} publishes were repeated by their ids")  # noqa: T201


def test_connections_that_fail_within_a_reply_cause_no_loss_stall_or_repetition(
    far: Fleet, broker: RedisServer
) -> None:
    with BreakableProxy(broker.port, seed=5) as proxy:
        far.detour(proxy)
        workers = far.pair(*LISTENERS, queue={"timeout": 1.0})
        publisher = far.start(**LOAD, queue={"timeout": 1.0})
        broken = 0
        while publisher.running:
            proxy.fail(FAULTS[broken % len(FAULTS)])
            broken += 1
            if len(far.runs("done", "end")) < COUNT * len(KEYS):
                wait_handled(far, len(far.runs("done", "end")))
        assert publisher.wait() == 0, publisher.stderr
        until(lambda: len(far.runs("flaky", "end")) >= COUNT * len(KEYS), "all is handled", timeout=SECONDS)
        far.wait_empty()
        far.stop(*workers)
    check_all(far)
    print(f"connections that broke: {dict(proxy.done)}")  # noqa: T201
    assert all(duplicates(far.journal.lines(), each) == 0 for each in LISTENERS)


def test_flush_of_the_broker_is_logged_and_work_continues(far: Fleet, broker: RedisServer) -> None:
    workers = far.pair(*LISTENERS, "chime", log_level="warning")
    far.publish(both(1))
    far.wait_empty()
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()
    until(
        lambda: any("subscriptions vanished from the queue" in each.stderr for each in workers),
        "the first to see it says so",
    )
    far.publish(both(2))
    far.run(lambda site: site.bus.publish(Chime(key="a", n=1)))
    until(lambda: len(far.runs("flaky", "end")) >= 2 * len(KEYS), "the later ones are handled", timeout=SECONDS)
    until(lambda: len({each.process for each in far.journal.of("note", "chime")}) == 2, "both hear broadcasts")
    far.wait_empty()
    far.stop(*workers)
    check_all(far)
    assert repeated(far.journal.lines(), "flaky") == []


def test_broker_that_loses_its_log_tail_continues_with_the_remaining_messages(far: Fleet, broker: RedisServer) -> None:
    workers = far.pair(*LISTENERS)
    far.publish(both(1))
    wait_handled(far, len(KEYS) / 4)
    tail = LogTail(broker)  # Some of the first deliveries are settled by then, some claimed, some waiting.
    far.wait_empty()
    far.publish(both(2))
    wait_handled(far, len(KEYS) * 2 - 1)
    far.wait_empty()
    tail.lose()
    far.publish(both(3))
    for each in LISTENERS:
        until(
            lambda name=each: len({it.key for it in far.runs(name, "end") if it.n == 3}) == len(KEYS),  # type: ignore[misc]
            f"{each} handles the later ones",
            timeout=SECONDS,
        )
    far.wait_empty()
    far.stop(*workers)
    # Messages of the lost tail are lost or repeated; all others continue in order, and none stays behind.
    kept = [line for line in far.journal.lines() if line.n != 2]
    for each in LISTENERS:
        assert [*lost(kept, each), *phantoms(kept, each)] == []
    assert [*overlapping(kept, "flaky"), *out_of_order(kept, "flaky")] == []
    assert far.dead_letters() == []
