"""Partitions from the queue's server: of one worker, or of all workers for longer than their leases."""

import time
from collections.abc import Sequence

import pytest

from tests.breakable_proxy import BreakableProxy
from tests.e2e.processes import let_pass, until
from tests.postgres_servers import PostgresServer
from tests.servers import RedisServer
from tests.torture.checker import accepted, check
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess
from tests.torture.listeners import LONG
from tests.torture.rows import EFFECT

pytestmark = [pytest.mark.e2e, pytest.mark.leases, pytest.mark.timeout(120)]

KEYS = ("a", "b", "c", "d")
LEASE = 1.0
QUEUE = {"lease": LEASE, "timeout": 0.5}
SECONDS = 20.0
"""Seconds within which a process must recover."""

GRACE = 1.0
LONGEST_STOP = GRACE + 5 + 3 * 10
"""The longest duration of a shutdown in seconds; docs/deploy.md lists its parts."""


def cut(proxy: BreakableProxy, how: str) -> None:
    {"cut off": proxy.close_off, "black out": proxy.black_out, "hold up": proxy.hold_up}[how]()


@pytest.mark.parametrize("how", ["cut off", "black out", "hold up"])
def test_disconnected_worker_ends_its_ordered_handlers_before_the_takeover(
    leased: Fleet, keeper: RedisServer | PostgresServer, how: str
) -> None:
    steps = [Step(key=key, n=n) for key in KEYS for n in range(2)]
    leased.publish(steps, listeners=["held"])
    with BreakableProxy(keeper.port, seed=1) as proxy:
        leased.detour(proxy)
        lonely = leased.started("held", queue=QUEUE)
        until(lambda: len(leased.runs("held")) == len(KEYS), "it is at work on every key")
        leased.detour(None)
        other = leased.started("held", queue=QUEUE)
        leased.gate.touch()
        cut(proxy, how)
        until(lambda: len(leased.runs("held", "end")) == len(steps), "the other one has done all of it")
        assert {each.process for each in leased.runs("held", "end")} == {other.number}
        proxy.open_up()
        leased.stop(other)
        leased.publish([Step(key=key, n=2) for key in KEYS])
        until(lambda: len(leased.runs("held", "end")) == len(steps) + len(KEYS), "it is back, and goes on")
        leased.wait_empty()
        leased.stop(lonely)
    lines = leased.journal.lines()
    assert check(lines, "held", ordered=True) == []
    assert len(leased.runs("held", "cancelled")) == len(KEYS)
    assert {each.attempt for each in leased.runs("held")} == {1}


@pytest.mark.postgres("queue")
def test_handler_on_a_silent_database_ends_before_the_takeover(leased: Fleet, keeper: PostgresServer) -> None:
    queue = {"lease": 10.0}
    leased.rows.create(EFFECT)
    leased.publish([Step(key=key, n=n) for n, key in enumerate(KEYS)], listeners=["booked"])
    with BreakableProxy(keeper.port, seed=1) as proxy:
        leased.detour(proxy)
        lonely = leased.started("booked", queue=queue)
        until(lambda: len(leased.runs("booked")) == len(KEYS), "it is at work on every key")
        until(lambda: leased.runs("booked", "note"), "it is in the middle of a transaction")
        leased.detour(None)
        other = leased.started("booked", queue=queue)
        leased.gate.touch()
        proxy.black_out()
        until(lambda: len(leased.runs("booked", "end")) == len(KEYS), "the other one has done all of it")
        assert {each.process for each in leased.runs("booked", "end")} == {other.number}
        proxy.open_up()
        leased.wait_empty()
        leased.stop(lonely, other)
    assert check(leased.journal.lines(), "booked", ordered=True) == []
    assert len(leased.runs("booked", "cancelled")) == len(KEYS)
    assert leased.rows.fetch("SELECT * FROM effect") == []


@pytest.mark.parametrize("how", ["black out", "hold up"])
def test_repeatedly_disconnected_worker_loses_nothing_and_keeps_the_order(
    leased: Fleet, keeper: RedisServer | PostgresServer, how: str
) -> None:
    listeners = ("flaky", "sibling", "once")
    leased.rows.create(EFFECT)
    with BreakableProxy(keeper.port, seed=2) as proxy:
        leased.detour(proxy)
        lonely = leased.started(*listeners)
        leased.detour(None)
        other = leased.started(*listeners)
        load = {"keys": list(KEYS), "rate": 50}
        publisher = leased.start(program="persistent", work=False, arguments=load)
        for _ in range(2):
            goes_on(leased, lonely, listeners)
            cut(proxy, how)
            let_pass(1.5 * leased.plan.queue["lease"])
            goes_on(leased, other, ["flaky", "sibling"])
            leased.reconnect(lonely, proxy)
        goes_on(leased, lonely, listeners)
        leased.gate.touch()
        assert publisher.wait() == 0, publisher.stderr
        leased.wait_empty()
        leased.stop(lonely, other)
    lines = leased.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "sibling", ordered=False) == []
    for key in KEYS:
        assert [n for it, n in effects(leased) if it == key] == accepted(lines)[key]
    assert leased.dead_letters() == []


@pytest.mark.parametrize("how", ["black out", "hold up"])
def test_disconnected_worker_shuts_down_in_time_and_its_work_is_taken_over(
    leased: Fleet, keeper: RedisServer | PostgresServer, how: str
) -> None:
    listeners = ("held", "flaky", "sibling")
    steps = [Step(key=key, n=1) for key in KEYS]
    with BreakableProxy(keeper.port, seed=3) as proxy:
        leased.detour(proxy)
        lonely = leased.started(*listeners, queue=QUEUE, options={**leased.plan.options, "grace": GRACE})
        leased.publish(steps, listeners=listeners)
        until(lambda: len(leased.runs("held")) == len(KEYS), "it is at work on every key")
        cut(proxy, how)
        lonely.terminate()
        assert lonely.wait(LONGEST_STOP) == 0, lonely.stderr
        leased.detour(None)
        leased.gate.touch()
        other = leased.started(*listeners, queue=QUEUE)
        until(lambda: len(leased.runs("held", "end")) == len(KEYS), "another one does its work")
        leased.reconnect(lonely, proxy)
        leased.wait_empty()
        leased.stop(other)
    assert check(leased.journal.lines(), "held", ordered=True) == []
    assert leased.dead_letters() == []


def effects(fleet: Fleet) -> list[tuple[str, int]]:
    """Return the database effects of the handlers in order."""
    return [(key, n) for key, n in fleet.rows.fetch("SELECT key, n FROM effect ORDER BY id")]


def goes_on(fleet: Fleet, process: ForkedProcess, listeners: Sequence[str]) -> None:
    """Wait until a process has handled another event with each of these listeners."""
    since = len(fleet.journal.lines())

    def done() -> bool:
        assert process.running, process.stderr
        lines = (it for it in fleet.journal.lines()[since:] if it.process == process.number and it.kind == "end")
        return {it.listener for it in lines} >= set(listeners)

    until(done, "it goes on", timeout=SECONDS)


def test_server_outage_longer_than_every_lease_causes_no_takeover(
    leased: Fleet, keeper: RedisServer | PostgresServer
) -> None:
    workers = leased.pair("held", "long", queue=QUEUE)
    steps = [Step(key=key, n=n) for key in KEYS for n in range(2)]
    jobs = [Job(key=each.key, n=each.n) for each in steps]
    leased.publish([*steps, *jobs])
    until(lambda: (len(leased.runs("held")), len(leased.runs("long"))) == (len(KEYS), len(jobs)), "they are at work")
    leased.rows.disconnect()
    keeper.kill()
    until(lambda: len(leased.runs("held", "cancelled")) == len(KEYS), "ordered handlers end with the leases")
    until(lambda: len(leased.runs("long", "end")) == len(jobs), "others do not", timeout=LONG + 20)
    leased.gate.touch()
    keeper.start()
    started_at = time.monotonic()
    until(lambda: len(leased.runs("held", "end")) == len(steps), "all is handled", timeout=20)
    print(f"all was handled {time.monotonic() - started_at:.1f} s after the start")  # noqa: T201
    leased.wait_empty()
    leased.stop(*workers)
    lines = leased.journal.lines()
    assert check(lines, "held", ordered=True) == []
    assert check(lines, "long", ordered=False) == []
    assert len(leased.runs("long")) == len(jobs)
    assert {each.attempt for each in leased.runs("held")} == {1}
