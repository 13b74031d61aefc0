"""Publishers killed at each point around commit, push and cleanup; and rollbacks, which leave nothing."""

import pytest
import redis

from bus import Bus
from tests.e2e.processes import until
from tests.servers import RedisServer
from tests.torture.checker import check
from tests.torture.events import Job, Step
from tests.torture.failing_publisher import POINTS
from tests.torture.fleet import Fleet
from tests.torture.opening import Opened
from tests.torture.rows import LEDGER

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]

BOUND = 5.0
"""The guaranteed seconds within which committed events are handled while a worker runs."""

LISTENERS = ("flaky", "done")


@pytest.mark.parametrize("point", POINTS)
def test_event_of_a_killed_publisher_is_delivered_if_and_only_if_committed(fleet: Fleet, point: str) -> None:
    fleet.rows.create(LEDGER)
    worker = fleet.started(*LISTENERS)
    publisher = fleet.start(program="failing_publisher", work=False, arguments={"point": point, "key": "a"})
    assert publisher.wait() == 9, publisher.stderr

    committed = fleet.rows.fetch("SELECT key FROM ledger") == [("a",)]
    assert committed == (point != "before commit")
    if committed:
        until(
            lambda: len(fleet.runs("flaky", "end")) == 2 and fleet.runs("done", "end"), "it is handled", timeout=BOUND
        )
        fleet.accept("a", [1, 2])
    fleet.wait_empty()
    fleet.stop(worker)
    lines = fleet.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert [(each.key, each.n) for each in fleet.runs("done")] == [("a", 1)] * committed


def test_rollback_leaves_no_rows_or_messages(far: Fleet, broker: RedisServer) -> None:
    there = far.started(*LISTENERS, work=False)
    far.publish([Job(key="kept", n=1), Step(key="kept", n=1)], listeners=LISTENERS)
    until(lambda: not far.rows.fetch("SELECT 1 FROM beneath_outbox"), "the first events are in the queue")
    before = trace(far, broker)

    async def regret(site: Opened) -> None:
        with pytest.raises(ZeroDivisionError):
            async with site.db.transaction():
                await enter(site.bus)
                raise ZeroDivisionError
        async with site.db.transaction():
            with pytest.raises(ZeroDivisionError):
                async with site.db.savepoint():
                    await enter(site.bus)
                    raise ZeroDivisionError

    far.run(regret, LISTENERS)
    assert trace(far, broker) == before
    far.stop(there)


async def enter(bus: Bus) -> None:
    """Publish in each possible way."""
    await bus.publish(Step(key="regretted", n=1))
    await bus.publish_many([Job(key="regretted", n=n) for n in range(3)])
    await bus.publish_delayed(Job(key="regretted", n=4), 60)
    assert await bus.cancel(await bus.publish_delayed(Job(key="regretted", n=5), 60))


def trace(fleet: Fleet, broker: RedisServer) -> object:
    """Return all rows and all keys of database and broker."""
    with redis.Redis.from_url(broker.url) as client:
        keys = sorted(client.scan_iter(count=1000))
        kept = {key: client.dump(key) for key in keys if not key.endswith(b":meta")}
        # Every call advances the queue's clock, which is stored as `h`.
        metas = {key: client.hgetall(key) for key in keys if key.endswith(b":meta")}
        kept |= {key: {name: value for name, value in meta.items() if name != b"h"} for key, meta in metas.items()}
    tables = [name for name in fleet.rows.tables() if name != "beneath_relay"]
    return kept, {name: fleet.rows.fetch(f"SELECT * FROM {name}") for name in tables}  # noqa: S608 - our own tables
