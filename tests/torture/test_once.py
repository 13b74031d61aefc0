"""`once=True` under crashes: handlers may run again, but their database effects exist once."""

from collections import Counter

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check, runs_of
from tests.torture.events import Step
from tests.torture.fleet import Fleet
from tests.torture.rows import EFFECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

KEYS = [f"key-{number}" for number in range(20)]
STEPS = 25
EVENTS = len(KEYS) * STEPS
LISTENERS = ("once", "done")


def test_rows_and_events_of_a_once_handler_exist_once_after_crashes(fleet: Fleet) -> None:
    fleet.rows.create(EFFECT)
    workers = fleet.pair(*LISTENERS)
    publisher = fleet.start(program="publisher", work=False, arguments={"keys": KEYS, "count": STEPS})
    for place in range(3):
        wait_for_share(fleet, 0.25 * (place + 1))
        fleet.kill(workers[place % 2])
        workers[place % 2] = fleet.started(*LISTENERS)
    assert publisher.wait() == 0, publisher.stderr
    fleet.wait_empty()
    fleet.stop(*workers)
    effects = Counter(fleet.rows.fetch("SELECT key, n FROM effect ORDER BY id"))

    assert effects == Counter({(key, n): 1 for key in KEYS for n in range(1, STEPS + 1)})
    for key in KEYS:
        assert [n for it, n in effects if it == key] == list(range(1, STEPS + 1))
    followed = {(each.key, each.n, each.id) for each in fleet.runs("done")}
    assert Counter((key, n) for key, n, _ in followed) == effects
    assert check(fleet.journal.lines(), "done", ordered=False) == []
    again = sum(run.listener == "once" and run.outcome == "end" for run in runs_of(fleet.journal.lines())) - EVENTS
    print(f"{again} handlers ran again after they had succeeded")  # noqa: T201


def wait_for_share(fleet: Fleet, share: float) -> None:
    until(lambda: len(fleet.runs("once", "end")) >= share * EVENTS, f"{share:.0%} are handled")


@pytest.mark.thorough
def test_rows_and_events_exist_once_although_every_delivery_is_repeated(fleet: Fleet) -> None:
    fleet.rows.create(EFFECT)
    steps = [Step(key=f"key-{n % 5}", n=n) for n in range(20)]
    fleet.publish(steps, listeners=LISTENERS)
    # Each of these workers commits the effects of its handlers, and dies before the settlement.
    for _ in range(3):
        forgetful = fleet.start("once", program="forgetful")
        assert forgetful.wait() == 9, forgetful.stderr
    worker = fleet.started(*LISTENERS)
    fleet.wait_empty()
    fleet.stop(worker)

    effects = Counter(fleet.rows.fetch("SELECT key, n FROM effect"))
    assert effects == Counter({(each.key, each.n): 1 for each in steps})
    assert Counter((each.key, each.n) for each in fleet.runs("done")) == effects
    assert fleet.dead_letters() == []
