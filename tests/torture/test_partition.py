"""Who cannot reach the broker: one worker alone, or all of them for longer than their leases."""

import time

import pytest

from tests.e2e.processes import until
from tests.servers import RedisServer
from tests.torture.checker import check
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.listeners import LONG
from tests.wire import Wire

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(120)]

KEYS = ("a", "b", "c", "d")
LEASE = 1.0
QUEUE = {"lease": LEASE, "timeout": 0.5}


@pytest.mark.parametrize("how", ["cut off", "black out"])
def test_a_worker_that_is_cut_off_alone_ends_its_ordered_handlers_before_others_take_over(
    far: Fleet, broker: RedisServer, how: str
) -> None:
    steps = [Step(key=key, n=n) for key in KEYS for n in range(2)]
    far.publish(steps, listeners=["held"])
    with Wire(broker.port, seed=1) as wire:
        far.detour(wire)
        lonely = far.started("held", queue=QUEUE)
        until(lambda: len(far.runs("held")) == len(KEYS), "it is at work on every key")
        far.detour(None)
        other = far.started("held", queue=QUEUE)
        far.gate.touch()
        wire.close_off() if how == "cut off" else wire.black_out()
        until(lambda: len(far.runs("held", "end")) == len(steps), "the other one has done all of it")
        assert {each.pid for each in far.runs("held", "end")} == {other.pid}
        wire.open_up()
        far.stop(other)
        far.publish([Step(key=key, n=2) for key in KEYS])
        until(lambda: len(far.runs("held", "end")) == len(steps) + len(KEYS), "it is back, and goes on")
        far.wait_empty()
        far.stop(lonely)
    lines = far.journal.lines()
    assert check(lines, "held", ordered=True) == []
    assert len(far.runs("held", "cancelled")) == len(KEYS)
    assert {each.attempt for each in far.runs("held")} == {1}


def test_a_broker_that_was_away_for_longer_than_every_lease_finds_its_workers_as_it_left_them(
    far: Fleet, broker: RedisServer
) -> None:
    workers = far.pair("held", "long", queue=QUEUE)
    steps = [Step(key=key, n=n) for key in KEYS for n in range(2)]
    jobs = [Job(key=each.key, n=each.n) for each in steps]
    far.publish([*steps, *jobs])
    until(lambda: (len(far.runs("held")), len(far.runs("long"))) == (len(KEYS), len(jobs)), "they are at work")
    broker.kill()
    until(lambda: len(far.runs("held", "cancelled")) == len(KEYS), "ordered handlers end with the leases")
    until(lambda: len(far.runs("long", "end")) == len(jobs), "others do not", timeout=LONG + 20)
    far.gate.touch()
    broker.start()
    started_at = time.monotonic()
    until(lambda: len(far.runs("held", "end")) == len(steps), "all is handled", timeout=20)
    print(f"all was handled {time.monotonic() - started_at:.1f} s after the start")  # noqa: T201
    far.wait_empty()
    far.stop(*workers)
    lines = far.journal.lines()
    assert check(lines, "held", ordered=True) == []
    assert check(lines, "long", ordered=False) == []
    assert len(far.runs("long")) == len(jobs)
    assert {each.attempt for each in far.runs("held")} == {1}
