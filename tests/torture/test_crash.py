"""Crashes: what a dead worker held is handled again soon, and only what kills workers is given up."""

import time

import pytest

from tests.e2e.processes import until
from tests.torture.checker import Run, check, runs_of
from tests.torture.events import Job, Step
from tests.torture.fleet import QUICK, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BOUND = 20.0
"""Seconds within which a dead worker's deliveries are handled again: the promise."""


def test_what_a_killed_worker_held_is_handled_again_by_another_one_within_20_s(fleet: Fleet) -> None:
    workers = fleet.pair("held", options={})
    fleet.publish([Step(key="a", n=1), Step(key="a", n=2)])
    [first] = until(lambda: fleet.runs("held"), "one of them handles it")
    doomed, other = sorted(workers, key=lambda it: it.pid != first.pid)
    fleet.gate.touch()

    died_at = fleet.kill(doomed)
    until(lambda: len(fleet.runs("held", "end")) == 2, "it is handled again", timeout=BOUND)

    again = fleet.runs("held")[1]
    assert (again.n, again.attempt, again.pid) == (1, 1, other.pid)
    assert again.at - died_at < BOUND
    print(f"handled again {again.at - died_at:.2f} s after the kill")  # noqa: T201
    fleet.stop(other)
    assert check(fleet.journal.lines(), "held", ordered=True) == []


def test_what_the_only_worker_held_is_handled_again_within_20_s_of_the_next_ones_start(fleet: Fleet) -> None:
    fleet.publish([Step(key="a", n=1), Step(key="a", n=2)], listeners=["held"])
    doomed = fleet.started("held", options={})
    until(lambda: fleet.runs("held"), "the worker handles it")
    fleet.gate.touch()
    fleet.kill(doomed)

    started_at = time.time()
    worker = fleet.start("held", options={})
    until(lambda: len(fleet.runs("held", "end")) == 2, "it is handled again", timeout=BOUND)

    again = fleet.runs("held")[1]
    assert again.at - started_at < BOUND
    print(f"handled again {again.at - started_at:.2f} s after the start")  # noqa: T201
    fleet.stop(worker)
    assert check(fleet.journal.lines(), "held", ordered=True) == []


@pytest.mark.parametrize(("listener", "event"), [("poisoned", Job), ("poisoned_key", Step)])
def test_a_message_that_kills_its_process_is_given_up_while_its_neighbours_complete(
    fleet: Fleet, listener: str, event: type[Job | Step]
) -> None:
    neighbours = [event(key=f"neighbour-{number % 10}", n=number) for number in range(50)]
    killer = [event(key="poison", n=1), event(key="poison", n=2)] if event is Step else [event(key="poison", n=1)]
    fleet.publish([*neighbours[:25], *killer, *neighbours[25:]], listeners=[listener])

    deaths = supervise(fleet, listener, done=50 + len(killer) - 1)

    [dead] = fleet.dead_letters()
    assert (dead.subscription, dead.crashes, dead.failures) == (listener, 3, 0)
    assert "died 3 times" in dead.error
    runs = [run for run in runs_of(fleet.journal.lines()) if run.listener == listener]
    assert {(run.key, run.n) for run in runs if run.outcome == "end"} == {
        (it.key, it.n) for it in [*neighbours, *killer[1:]]
    }
    assert {run.attempt for run in runs} == {1}
    assert len([run for run in runs if (run.key, run.n) == ("poison", 1)]) == deaths
    assert alone(runs, deaths) == []
    print(f"{deaths} deaths; {len(runs)} runs of {50 + len(killer)} messages")  # noqa: T201


def supervise(fleet: Fleet, listener: str, *, done: int) -> int:
    """Start the worker again whenever it dies, until something is given up and all else done; return how often."""
    deaths = 0
    worker = fleet.start(listener)

    def settled() -> bool:
        nonlocal deaths, worker
        if not worker.running:
            assert worker.wait() == 9, worker.stderr
            deaths += 1
            worker = fleet.start(listener)
        ended = {(each.key, each.n) for each in fleet.runs(listener, "end")}
        return len(ended) == done and fleet.stats()[listener].dead == 1

    until(settled, "all is handled or given up", timeout=90)
    fleet.wait_ready(worker)
    fleet.stop(worker)
    return deaths


def alone(runs: list[Run], deaths: int) -> list[Run]:
    """Return what ran beside the poison in its last three lives: nothing may."""
    last = [run for run in runs if (run.key, run.n) == ("poison", 1)][deaths - 3 :]
    return [
        run
        for run in runs
        for poison in last
        if run is not poison and run.pid == poison.pid and run.started < poison.ended and run.ended > poison.started
    ]


@pytest.mark.parametrize("listener", ["long", "long_thread"])
def test_a_handler_longer_than_every_lease_runs_once(fleet: Fleet, listener: str) -> None:
    # Its 2 s are 20 times the renewals and looks for the dead of both workers, and twice their longest stall.
    workers = fleet.pair(listener, options={**QUICK, "max_stall": 1.0})
    fleet.publish([Job(key="a", n=1)])
    until(lambda: fleet.runs(listener, "end"), "it has ended")
    fleet.wait_empty()
    fleet.stop(*workers)

    assert len(fleet.runs(listener)) == 1
    assert check(fleet.journal.lines(), listener, ordered=False) == []
