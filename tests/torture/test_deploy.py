"""Rolling deploys: old and new code on one queue."""

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check
from tests.torture.events import Job, Novelty
from tests.torture.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_delivery_for_a_listener_that_the_worker_lacks_waits_visibly_for_one_that_has_it(fleet: Fleet) -> None:
    fleet.publish([Job(key="a", n=1)], listeners=["done", "failing"])
    worker = fleet.started("done")
    until(lambda: fleet.runs("done", "end"), "the listener that it has is done")

    rows = {row["listener"]: row for row in fleet.command("bus", "stats", "--json")}
    assert (rows["failing"]["workers"], rows["failing"]["ready"]) == (0, 1)
    assert (rows["done"]["workers"], rows["done"]["ready"]) == (1, 0)

    fleet.gate.touch()
    newer = fleet.started("done", "failing")
    until(lambda: fleet.runs("failing", "end"), "the other one is done, too")
    assert [each.attempt for each in fleet.runs("failing")] == [1]
    fleet.stop(worker, newer)
    assert check(fleet.journal.lines(), "failing", ordered=False) == []
    assert check(fleet.journal.lines(), "done", ordered=False) == []


def test_an_event_that_the_worker_does_not_know_is_parked_for_one_that_does(fleet: Fleet) -> None:
    worker = fleet.started("old")
    fleet.publish([Novelty(key="a", n=1)], listeners=["new"])
    until(lambda: fleet.stats()["versioned"].parked == 1, "it is parked")
    assert fleet.runs("versioned") == []

    newer = fleet.started("new")
    until(lambda: fleet.runs("versioned", "end"), "it is handled")
    assert [(each.pid, each.attempt) for each in fleet.runs("versioned")] == [(newer.pid, 1)]
    fleet.stop(worker, newer)
    assert check(fleet.journal.lines(), "versioned", ordered=False) == []
