"""Killed publishers: an event exists if and only if its transaction was committed."""

from random import Random

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess
from tests.torture.rows import LEDGER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

KILLS = 5
LISTENERS = ("flaky", "done")


def test_sigkill_during_commit_leaves_exactly_one_event_per_row(fleet: Fleet) -> None:
    random = Random(8)
    fleet.rows.create(LEDGER)
    worker = fleet.started(*LISTENERS)
    for _ in range(KILLS):
        count = rows(fleet) + random.randint(1, 400)
        publisher = fleet.start(program="ledger")
        wait_for_rows(fleet, count, publisher)
        fleet.kill(publisher)
    booked = fleet.rows.fetch("SELECT key, n FROM ledger ORDER BY key, n")
    fleet.wait_empty()
    fleet.stop(worker)

    regretted = [each for each in fleet.journal.of("note") if each.text == "rolled back"]
    assert regretted
    # The rows of the table determine the published events.
    for key, n in booked:
        fleet.accept(key, [n])
    lines = fleet.journal.lines()
    assert check(lines, "flaky", ordered=True) == []
    assert check(lines, "done", ordered=False) == []
    assert len(fleet.runs("done")) == len(booked)
    print(f"{len(booked)} rows of {KILLS} killed publishers, {len(regretted)} rolled back")  # noqa: T201


def wait_for_rows(fleet: Fleet, count: int, publisher: ForkedProcess) -> None:
    def enough() -> bool:
        assert publisher.running, publisher.stderr
        return rows(fleet) >= count

    until(enough, f"{count} rows are committed")


def rows(fleet: Fleet) -> int:
    [(count,)] = fleet.rows.fetch("SELECT count(*) FROM ledger")
    return int(count)
