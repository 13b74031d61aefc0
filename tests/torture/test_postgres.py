"""Restarts, crashes and ended connections of PostgreSQL, under load and with rows in the outbox."""

import signal
import time
from collections import Counter, defaultdict
from random import Random

import pytest

from tests.breakable_proxy import BreakableProxy
from tests.e2e.processes import let_pass, until
from tests.postgres_servers import PostgresServer, wait_for
from tests.servers import RedisServer
from tests.torture.bookkeeper import DIRECT, DROPPED, KEPT, UNKNOWN
from tests.torture.checker import check
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess
from tests.torture.journal import Line
from tests.torture.rows import EFFECT, LEDGER

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(180)]

LISTENERS = ("flaky", "sibling", "once", "done")
LEASE = 10.0
"""The default lease: no fault lasts as long, so that no worker may lose its claims."""

KEYS = [f"key-{number}" for number in range(8)]
FAULTS = (*["terminate"] * 4, "restart", *["terminate"] * 4, "crash") * 2
LONGEST_PEACE = 0.6
"""The longest time between two faults in seconds."""

LOST_ANSWERS = ("mute", "cut", "half", "mute") * 30

CARRIED = ("flaky", "sibling", "done")
"""The listeners that do not use the database."""

SECONDS = 20.0
"""Seconds within which every process must recover."""

TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def strike(server: PostgresServer, fault: str) -> int:
    """Cause a fault of a server; return the number of connections that it ended."""
    if fault == "terminate":
        return int(wait_for(server.fetch(TERMINATE))[0][0])
    server.stop(signal.SIGINT if fault == "restart" else signal.SIGQUIT)
    server.start()
    return 0


def booked(fleet: Fleet) -> list[tuple[str, int]]:
    """Return the committed rows; check that they agree with the outcomes that the publishers got."""
    rows = [(key, n) for key, n in fleet.rows.fetch("SELECT key, n FROM ledger ORDER BY key, n")]
    told = defaultdict(set)
    for line in fleet.journal.of("note"):
        told[line.text].add((line.key, line.n))
    assert told[KEPT] <= set(rows) <= told[KEPT] | told[UNKNOWN]
    assert told[DROPPED].isdisjoint(rows)
    counts = {each: len(told[each]) for each in (KEPT, DROPPED, UNKNOWN)}
    print(f"{counts}; of the unknown {len(told[UNKNOWN] & set(rows))} kept")  # noqa: T201
    return rows


def check_once(fleet: Fleet, rows: list[tuple[str, int]]) -> None:
    """Check that each database effect of the handlers exists once, in order, with its event."""
    effects = fleet.rows.fetch("SELECT key, n FROM effect ORDER BY id")
    assert Counter(effects) == Counter(rows)
    for key in KEYS:
        assert [each for each in effects if each[0] == key] == [each for each in rows if each[0] == key]


def check_all(fleet: Fleet) -> None:
    """Check that there is exactly one event for each row, and that no event was handled again."""
    rows = booked(fleet)
    for key, n in rows:
        fleet.accept(key, [n])
    lines = fleet.journal.lines()
    steps = [each for each in lines if not each.key.startswith(DIRECT)]
    assert check(steps, "flaky", ordered=True) == []
    assert check(steps, "sibling", ordered=False) == []
    assert check(lines, "done", ordered=False) == []
    check_once(fleet, rows)
    assert fleet.dead_letters() == []


def wait_all_go_on(fleet: Fleet, workers: list[ForkedProcess], publishers: list[ForkedProcess]) -> None:
    """Wait until each process has done each of its kinds of work once more."""
    since = time.time()

    def of(child: ForkedProcess) -> list[Line]:
        return [each for each in fleet.journal.lines() if each.process == child.number and each.at > since]

    def all_do() -> bool:
        for child in (*workers, *publishers):
            assert child.running, child.stderr
        handled = ({each.listener for each in of(it) if each.kind == "end"} for it in workers)
        published = ({each.text or each.kind for each in of(it)} for it in publishers)
        return all(it == set(LISTENERS) for it in handled) and all({KEPT, "accepted"} <= it for it in published)

    until(all_do, "every process goes on", timeout=SECONDS)
    print(f"every process went on {time.time() - since:.1f} s after the last fault")  # noqa: T201


def start(fleet: Fleet) -> tuple[list[ForkedProcess], list[ForkedProcess]]:
    """Start two workers and two publishers; return when all work, as a process cannot start during an outage."""
    fleet.rows.create(LEDGER)
    fleet.rows.create(EFFECT)
    fleet.rows.disconnect()
    workers = fleet.pair(*LISTENERS, queue={"lease": LEASE})
    publishers = [
        fleet.start(program="bookkeeper", work=False, arguments={"keys": keys}) for keys in (KEYS[:4], KEYS[4:])
    ]

    def publishing() -> bool:
        return {each.number for each in publishers} <= {each.process for each in fleet.journal.lines()}

    until(publishing, "both publish")
    return workers, publishers


def finish(fleet: Fleet, workers: list[ForkedProcess], publishers: list[ForkedProcess]) -> None:
    """Wait until each process has worked once more, stop all of them, and check their results."""
    wait_all_go_on(fleet, workers, publishers)
    fleet.gate.touch()
    for each in publishers:
        assert each.wait() == 0, each.stderr
    fleet.wait_empty()
    fleet.stop(*workers)
    check_all(fleet)


def test_outages_of_postgresql_under_load_cause_no_loss_and_no_duplicate(near: Fleet, postgres: PostgresServer) -> None:
    workers, publishers = start(near)
    random, ended = Random(13), 0
    for fault in FAULTS:
        let_pass(random.uniform(0, LONGEST_PEACE))
        ended += strike(postgres, fault)
    print(f"{dict(Counter(FAULTS))}, {ended} connections ended")  # noqa: T201
    finish(near, workers, publishers)


def test_event_exists_if_and_only_if_its_row_does_after_indeterminate_commits(
    near: Fleet, postgres: PostgresServer
) -> None:
    with BreakableProxy(postgres.port, seed=7) as proxy:
        near.detour(proxy)
        workers, publishers = start(near)
        for fault in LOST_ANSWERS:
            let_pass(0.05)
            proxy.fail(fault)
        while not unknown_but_kept(near):
            let_pass(0.05)
            proxy.fail("mute")
        print(f"connections that broke: {dict(proxy.done)}")  # noqa: T201
        finish(near, workers, publishers)


def unknown_but_kept(fleet: Fleet) -> set[tuple[str, int]]:
    """Return the committed rows whose outcome was reported as indeterminate."""
    unknown = {(each.key, each.n) for each in fleet.journal.of("note") if each.text == UNKNOWN}
    return unknown.intersection((key, n) for key, n in fleet.rows.fetch("SELECT key, n FROM ledger"))


@pytest.mark.broker
def test_outbox_rows_survive_restarts_and_are_relayed_once_and_in_order(
    apart: Fleet, postgres: PostgresServer, broker: RedisServer
) -> None:
    workers = apart.pair(*CARRIED, queue={"lease": LEASE})
    apart.publish([Job(key="first", n=1), Step(key="first", n=1)])
    apart.wait_empty()
    broker.kill()
    publishers = [
        apart.start(program="offline", work=False, arguments={"keys": keys, "count": 100})
        for keys in (KEYS[:4], KEYS[4:])
    ]
    for each in publishers:
        assert each.wait() == 0, each.stderr
    for fault in ("terminate", "restart", "crash"):
        apart.rows.disconnect()
        strike(postgres, fault)
        assert apart.rows.fetch("SELECT count(*) FROM beneath_outbox") == [(2 * 100 * len(KEYS),)]
    apart.rows.disconnect()

    broker.start()
    random, everything = Random(3), 100 * len(KEYS) + 1
    for fault in FAULTS[:15]:
        let_pass(random.uniform(0, 0.2))
        strike(postgres, fault)
    until(lambda: min(len(apart.runs(it, "end")) for it in CARRIED) >= everything, "all is handled", timeout=SECONDS)
    apart.wait_empty()
    apart.stop(*workers)
    lines = apart.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "sibling", ordered=False) == []
    assert check(lines, "done", ordered=False) == []
    assert apart.dead_letters() == []
