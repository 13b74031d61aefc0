"""Rolling deploys: old and new code on one queue."""

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check
from tests.torture.events import Job, Novelty
from tests.torture.fleet import Fleet
from tests.torture.journal import Line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_delivery_for_an_unknown_listener_waits_visibly_for_a_worker_with_it(fleet: Fleet) -> None:
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


def test_unknown_event_is_parked_until_a_worker_knows_the_event(fleet: Fleet) -> None:
    worker = fleet.started("old")
    fleet.publish([Novelty(key="a", n=1)], listeners=["new"])
    until(lambda: fleet.stats()["versioned"].parked == 1, "it is parked")
    assert fleet.runs("versioned") == []

    newer = fleet.started("new")
    until(lambda: fleet.runs("versioned", "end"), "it is handled")
    assert [(each.process, each.attempt) for each in fleet.runs("versioned")] == [(newer.number, 1)]
    fleet.stop(worker, newer)
    assert check(fleet.journal.lines(), "versioned", ordered=False) == []


def test_event_published_while_no_worker_runs_waits_for_a_worker(fleet: Fleet) -> None:
    fleet.stop(fleet.started("done"))
    fleet.publish([Job(key="a", n=n) for n in range(1, 4)])
    row = fleet.stats()["done"]
    assert (row.workers, row.ready) == (0, 3)

    worker = fleet.started("done")
    until(lambda: len(fleet.runs("done", "end")) == 3, "it is handled")
    fleet.stop(worker)
    assert check(fleet.journal.lines(), "done", ordered=False) == []


def test_new_listener_gets_every_event_accepted_after_its_declaration(fleet: Fleet) -> None:
    workers = fleet.pair("done")
    arguments = {"keys": ["a"], "count": 1000, "rate": 400}
    publisher = fleet.start(program="persistent", work=False, arguments=arguments)
    until(lambda: len(fleet.runs("done", "end")) > 100, "the workers handle events")
    newer = fleet.start("done", "late")
    registered = fleet.wait_ready(newer)
    first = next_accepted(fleet, registered)
    assert publisher.wait() == 0, publisher.stderr
    assert next_accepted(fleet, registered) > first + 100
    fleet.wait_empty()
    fleet.stop(*workers, newer)

    accepted = [each.n for each in fleet.journal.of("accepted")]
    came = {each.n for each in fleet.runs("late", "end")}
    # The publish of `first` may have begun before the registration; all later ones began after it.
    assert set(accepted[accepted.index(first) + 1 :]) <= came
    assert min(came) > 1
    assert {each.process for each in fleet.runs("late")} == {newer.number}
    assert check(fleet.journal.lines(), "done", ordered=False) == []


def next_accepted(fleet: Fleet, after: Line) -> int:
    """Wait until a number is accepted after a line of the journal; return the latest accepted number."""
    line = until(
        lambda: next((it for it in reversed(fleet.journal.of("accepted")) if it.at > after.at), None), "one is accepted"
    )
    assert line is not None
    return line.n


@pytest.mark.thorough
def test_backlog_of_a_removed_listener_stays_visible_until_retirement(fleet: Fleet) -> None:
    fleet.stop(fleet.started("done", "late"))
    worker = fleet.started("done")
    fleet.publish([Job(key="a", n=n) for n in range(1, 4)])
    until(lambda: len(fleet.runs("done", "end")) == 3, "the others go on")
    until(lambda: fleet.stats()["late"].workers == 0, "no worker has it any more")
    rows = {row["listener"]: row for row in fleet.command("bus", "stats", "--json")}
    assert (rows["late"]["workers"], rows["late"]["ready"]) == (0, 3)

    said = fleet.command("bus", "retire", "late", "--backlog", "discard")
    assert said == "retired late; 3 deliveries waited for it\n"
    assert {row["listener"] for row in fleet.command("bus", "stats", "--json")} == {"done"}
    fleet.publish([Job(key="a", n=4)])
    until(lambda: len(fleet.runs("done", "end")) == 4, "the others still go on")
    fleet.stop(worker)
    assert fleet.runs("late") == []
