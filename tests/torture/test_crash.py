"""Crashes of workers: their claims are handled again soon, and only deliveries that kill workers are dead-lettered."""

import time
from typing import Any

import pytest

from tests.e2e.processes import until
from tests.torture.checker import Run, check, runs_of
from tests.torture.events import Job, Step
from tests.torture.fleet import QUICK, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DEFAULTS: dict[str, Any] = {"options": {}, "queue": {}}
"""The default intervals and leases."""

BOUND = 20.0
"""The guaranteed seconds within which a dead worker's deliveries are handled again."""


def test_claims_of_a_killed_worker_are_handled_by_another_within_20_s(fleet: Fleet) -> None:
    workers = fleet.pair("held", **DEFAULTS)
    fleet.publish([Step(key="a", n=1), Step(key="a", n=2)])
    [first] = until(lambda: fleet.runs("held"), "one of them handles it")
    killed, other = sorted(workers, key=lambda it: it.number != first.process)
    fleet.gate.touch()

    died_at = fleet.kill(killed)
    until(lambda: len(fleet.runs("held", "end")) == 2, "it is handled again", timeout=BOUND)

    again = fleet.runs("held")[1]
    assert (again.n, again.attempt, again.process) == (1, 1, other.number)
    assert again.at - died_at < BOUND
    print(f"handled again {again.at - died_at:.2f} s after the kill")  # noqa: T201
    fleet.stop(other)
    assert check(fleet.journal.lines(), "held", ordered=True) == []


def test_claims_of_the_only_worker_are_handled_within_20_s_of_restart(fleet: Fleet) -> None:
    fleet.publish([Step(key="a", n=1), Step(key="a", n=2)], listeners=["held"])
    killed = fleet.started("held", **DEFAULTS)
    until(lambda: fleet.runs("held"), "the worker handles it")
    fleet.gate.touch()
    fleet.kill(killed)

    started_at = time.time()
    worker = fleet.start("held", **DEFAULTS)
    until(lambda: len(fleet.runs("held", "end")) == 2, "it is handled again", timeout=BOUND)

    again = fleet.runs("held")[1]
    assert again.at - started_at < BOUND
    print(f"handled again {again.at - started_at:.2f} s after the start")  # noqa: T201
    fleet.stop(worker)
    assert check(fleet.journal.lines(), "held", ordered=True) == []


POISON = ("poison", 1)
LETHAL = ("poisoned", "poisoned_key")
DEATHS = 3
"""The number of crashes of an isolated message before it becomes a dead letter."""


@pytest.mark.thorough
def test_messages_that_kill_their_process_become_dead_letters_and_neighbours_complete(fleet: Fleet) -> None:
    jobs = [Job(key=f"neighbour-{number % 10}", n=number) for number in range(50)]
    steps = [*(Step(key=f"neighbour-{number % 10}", n=number) for number in range(49)), Step(key="poison", n=2)]
    killers = [Job(key="poison", n=1), Step(key="poison", n=1)]
    fleet.publish([*jobs[:25], *steps[:25], *killers, *steps[25:], *jobs[25:]], listeners=LETHAL)

    deaths = supervise(fleet, done=len(jobs) + len(steps))

    letters = fleet.dead_letters()
    assert {each.subscription for each in letters} == set(LETHAL)
    assert {(each.crashes, each.failures) for each in letters} == {(DEATHS, 0)}
    assert all("died 3 times" in each.error for each in letters)
    runs = runs_of(fleet.journal.lines())
    completed = {(run.listener, run.key, run.n) for run in runs if run.outcome == "end"}
    assert completed == {
        *(("poisoned", each.key, each.n) for each in jobs),
        *(("poisoned_key", each.key, each.n) for each in steps),
    }
    assert {run.attempt for run in runs} == {1}
    assert beside_their_last_runs(runs) == []
    print(f"{deaths} deaths; {len(runs)} runs of 102 messages")  # noqa: T201


def supervise(fleet: Fleet, *, done: int) -> int:
    """Restart the worker whenever it dies, until both killing messages are dead letters and the rest is handled."""
    deaths = 0
    worker = fleet.start(*LETHAL)

    def settled() -> bool:
        nonlocal deaths, worker
        if not worker.running:
            assert worker.wait() == 9, worker.stderr
            deaths += 1
            worker = fleet.start(*LETHAL)
        ended = {(each.listener, each.key, each.n) for each in fleet.journal.of("end")}
        return len(ended) == done and len(fleet.dead_letters()) == len(LETHAL)

    until(settled, "all is handled or dead", timeout=90)
    fleet.wait_ready(worker)
    fleet.stop(worker)
    return deaths


def beside_their_last_runs(runs: list[Run]) -> list[Run]:
    """Return the runs beside a killing message in its last three processes, in which it must run alone."""
    lives = [[run for run in runs if (run.key, run.n) == POISON and run.listener == it][-DEATHS:] for it in LETHAL]
    return [
        run
        for killer in (*lives[0], *lives[1])
        for run in runs
        if run is not killer
        and run.process == killer.process
        and run.started < killer.ended
        and run.ended > killer.started
    ]


def test_handler_longer_than_every_lease_runs_once_in_loop_and_thread(fleet: Fleet) -> None:
    # Its 2 s are 20 times the intervals of renewal and recovery, twice the longest allowed stall, and twice
    # the lease, on queues with leases.
    workers = fleet.pair("long", "long_thread", options={**QUICK, "max_stall": 1.0}, queue={"lease": 1.0})
    fleet.publish([Job(key="a", n=1)])
    until(lambda: len(fleet.journal.of("end")) == 2, "they have ended")
    fleet.wait_empty()
    fleet.stop(*workers)

    assert sorted(each.listener for each in fleet.journal.of("start")) == ["long", "long_thread"]
    for listener in ("long", "long_thread"):
        assert check(fleet.journal.lines(), listener, ordered=False) == []


def test_handler_that_blocks_the_loop_loses_its_claims_and_its_worker_recovers(fleet: Fleet) -> None:
    workers = fleet.pair("blocking", options={**QUICK, "max_stall": 0.5})
    fleet.publish([Step(key="a", n=1), Step(key="a", n=2)])
    [first] = until(lambda: fleet.runs("blocking"), "one of them handles it")
    fleet.gate.touch()
    until(lambda: len(fleet.runs("blocking", "end")) >= 2, "the other one takes it over")
    stuck, other = sorted(workers, key=lambda it: it.number != first.process)
    assert [(each.n, each.process) for each in fleet.runs("blocking", "end")][:2] == [
        (1, other.number),
        (2, other.number),
    ]
    assert "listeners.py" in stuck.stderr
    assert "blocking, File" in stuck.stderr

    until(lambda: len(fleet.runs("blocking", "end")) == 3, "the first one ends after all")
    until(lambda: fleet.stats()["blocking"].workers == 2, "its worker is back")
    fleet.wait_empty()
    fleet.stop(*workers)
    assert len(fleet.runs("blocking")) == 3
