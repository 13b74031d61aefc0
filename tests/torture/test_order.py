"""Order with two workers on one queue during failures, a crash and a deployment."""

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check, runs_of, successes
from tests.torture.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

KEYS = [f"key-{number}" for number in range(50)]
STEPS = 200
EVENTS = len(KEYS) * STEPS


def test_failures_a_crash_and_a_deploy_change_no_order_and_lose_nothing(fleet: Fleet) -> None:
    workers = fleet.pair("flaky", "sibling")
    publishers = [
        fleet.start(program="publisher", work=False, arguments={"keys": keys, "count": STEPS})
        for keys in (KEYS[:25], KEYS[25:])
    ]

    def handled(share: float) -> None:
        until(lambda: len(fleet.runs("flaky", "end")) >= share * EVENTS, f"{share:.0%} are handled", timeout=200)

    handled(0.3)
    fleet.kill(workers[0])
    workers[0] = fleet.start("flaky", "sibling")
    handled(0.6)
    fleet.stop(workers[1])
    workers[1] = fleet.start("flaky", "sibling")
    handled(1)
    for publisher in publishers:
        assert publisher.wait() == 0, publisher.stderr
    fleet.wait_empty()
    for worker in workers:
        fleet.wait_ready(worker)
    fleet.stop(*workers)

    lines = fleet.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "sibling", ordered=False) == []
    assert fleet.dead_letters() == []
    report(fleet)


def report(fleet: Fleet) -> None:
    lines = fleet.journal.lines()
    seconds = lines[-1].at - lines[0].at
    runs = runs_of(lines)
    again = {name: sum(successes(runs, name).values()) - EVENTS for name in ("flaky", "sibling")}
    failed = sum(run.outcome == "failed" for run in runs)
    print(f"{len(runs)} runs in {seconds:.1f} s, {failed} failed, handled again: {again}")  # noqa: T201
