"""A rolling deploy: processes of the previous release and of the code under test on one database and queue."""

from collections import Counter

import pytest

from tests.e2e.processes import until
from tests.torture.journal import Line
from tests.upgrade.deployment import NEW, PATIENCE, Deployment, Release, violations

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(900)]

SHARE = 5
"""The number of the other release's events that each listener of a release must have handled, and of broadcasts."""

UNORDERED = {"plain": "Job", "once": "Job", "versioned": "Job"}
ORDERED = {"lined": "Step", "lined_versioned": "Step"}


def test_processes_of_both_releases_share_the_work(deployment: Deployment, old: Release) -> None:
    deployment.command(old, "migrate", "up")
    first = deployment.start(old, work=True, flow="old")
    deployment.wait_ready(first)
    until(lambda: deployment.ends("plain"), "the release works", timeout=PATIENCE)
    deployment.command(NEW, "migrate", "up")
    restarted = deployment.beneath(old, "start", "control-worker")

    second, third = (deployment.start(NEW, work=True, flow=name) for name in ("new", "newer"))
    deployment.wait_ready(second, third)
    wait_shared(deployment, {first}, {second, third})
    deployment.kill(third)
    fourth = deployment.start(NEW, work=True)
    deployment.wait_ready(fourth)
    wait_shared(deployment, {first}, {second, fourth})
    deployment.kill(first)
    deployment.stop(second)
    with deployment.watched(NEW) as watch:
        watch.wait_drained()
    deployment.stop(fourth)
    assert restarted.wait(PATIENCE) == 1
    assert restarted.stderr.startswith("beneath: the database is newer than this code: ")
    check_runs(deployment)


def wait_shared(deployment: Deployment, old: set[int], new: set[int]) -> None:
    """Wait until each release has handled events of the other one for each listener, from now on."""
    read = len(deployment.journal.lines())
    shares: Counter[tuple[str, bool]] = Counter()

    def shared() -> bool:
        nonlocal read
        lines = deployment.journal.lines()
        for each in lines[read:]:
            is_foreign = each.process in (new if each.key.endswith("old") else old)
            if is_foreign and (each.kind == "end" or each.text == "chime"):
                shares[each.listener or "chime", each.process in new] += 1
        read = len(lines)
        return all(
            shares[name, by_new] >= SHARE for name in (*UNORDERED, *ORDERED, "chime") for by_new in (True, False)
        )

    until(shared, "each release handles events of the other", timeout=PATIENCE)


def check_runs(deployment: Deployment) -> None:
    """Check that each event was handled as promised, and in order."""
    lines = deployment.journal.lines()
    lines = [*lines, *accepted_before_a_kill(lines)]
    for listener, event in UNORDERED.items():
        assert violations(lines, listener, event, ordered=False) == []
    for listener, event in ORDERED.items():
        assert violations(lines, listener, event, ordered=True) == []


def accepted_before_a_kill(lines: list[Line]) -> list[Line]:
    """Return the events of killed processes that were accepted, but not recorded."""
    known = {(each.key, each.n) for each in lines if each.kind == "accepted"}
    found: dict[tuple[str, int], Line] = {}
    for each in lines:
        if each.kind == "start" and (each.key, each.n) not in known:
            event = "Step" if each.key.startswith("step") else "Job"
            found.setdefault(
                (each.key, each.n),
                Line(kind="accepted", process=0, at=each.at, key=each.key, n=each.n, text=event),
            )
    return sorted(found.values(), key=lambda it: it.n)
