"""Four workers under load: each second one is killed, and one is paused for longer than its lease."""

import time
from typing import Any

import pytest

from tests.e2e.processes import let_pass
from tests.torture.checker import check, duplicates
from tests.torture.fleet import QUICK, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(120)]

KEYS = [f"key-{number}" for number in range(40)]
STEPS = 60
EVENTS = len(KEYS) * STEPS
RATE = 400
"""The largest rate of each kind of event per second, so that the test lasts long enough for all faults."""

LEASE = 1.5
PAUSED = 2 * LEASE
IN_HAND = 20 + 16
"""The largest number of unsettled claims of a worker per listener: `prefetch` and running handlers."""

LISTENERS = ("flaky", "sibling", "done")


def test_killed_and_paused_workers_cause_no_loss_and_no_disorder(
    fleet: Fleet,
) -> None:
    own: dict[str, Any] = {"options": {**QUICK, "prefetch": 20}, "queue": {"lease": LEASE}}
    workers = [fleet.start(*LISTENERS, **own) for _ in range(4)]
    for each in workers:
        fleet.wait_ready(each)
    publisher = fleet.start(
        program="persistent", work=False, arguments={"keys": KEYS, "count": STEPS, "rate": RATE}, log_level="warning"
    )

    faults = 0
    paused_at = resumed_at = 0.0
    while publisher.running or faults < 4:
        if not paused_at:
            fleet.pause(workers[0])
            paused_at = time.monotonic()
            faults += 1
        elif not resumed_at and time.monotonic() - paused_at > PAUSED:
            workers[0].resume()
            resumed_at = time.monotonic()
        victim = 1 + faults % 3
        let_pass(1.0)
        fleet.kill(workers[victim])
        faults += 1
        workers[victim] = fleet.start(*LISTENERS, **own)
    if not resumed_at:
        workers[0].resume()
    assert publisher.wait() == 0, publisher.stderr
    fleet.wait_empty()
    for each in workers:
        fleet.wait_ready(each)
    fleet.stop(*workers)

    lines = fleet.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "sibling", ordered=False) == []
    assert check(lines, "done", ordered=False) == []
    again = {name: duplicates(lines, name) for name in LISTENERS}
    assert max(again.values()) <= faults * IN_HAND
    assert fleet.dead_letters() == []
    seconds = lines[-1].at - lines[0].at
    print(f"{3 * EVENTS} deliveries in {seconds:.1f} s, {faults} faults, handled again: {again}")  # noqa: T201
