"""The previous release fills a database and a queue; the code under test upgrades and drains both."""

from collections import Counter

import pytest

from tests.servers import RedisServer
from tests.upgrade.deployment import NEW, Deployment, Release, Row, violations
from tests.upgrade.program import LONG, Publish

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(900)]

SOON = 1.0
"""The delay in seconds of events that become due when no worker runs, or later."""

BACKLOG = 25
"""The number of events of each key that wait for a worker; more than a mailbox's claim has."""

CANCELLED = ["far job", "far step", "named"]
"""The ids that the code under test cancels; the last one is not delayed."""

AT_ONCE = {"BENEATH_MQ_DEDUPE_WINDOW": "0.1"}
"""Settings of a process that forgets accepted ids at once."""


def job(key: str, n: int = 1, **options: str | float) -> Publish:
    return Publish(event="Job", key=f"job-{key}", n=n, **options)  # type: ignore[arg-type]  # id and delay


def step(key: str, n: int = 1, **options: str | float) -> Publish:
    return Publish(event="Step", key=f"step-{key}", n=n, **options)  # type: ignore[arg-type]  # id and delay


FAULTY = [
    [job("dead")],
    [job("retried")],
    [job("deferred")],
    [job("held")],
    [job("twice", id="twice")],
    [Publish(event="NewJob", key="new-job", n=1)],
    *([step(key, n)] for key in ("retried", "deferred", "held", "blocked") for n in (1, 2, 3)),
    [Publish(event="NewStep", key="new-step", n=1)],
]
"""Events of which each meets the fault that its key names, in groups."""

FAULTS_MET: set[tuple[str, str, str]] = {
    (kind, listener, f"{key}-{fault}")
    for kind, fault in (("start", "held"), ("failed", "retried"), ("cancelled", "deferred"))
    for listener, key in (("plain", "job"), ("lined", "step"))
}
"""The kinds, listeners and keys of lines which tell that events have met their faults."""

LATER = [
    [job("far", delay=LONG, id="far job"), step("far", delay=LONG, id="far step")],
    [job("soon", delay=SOON), step("soon", delay=SOON)],
]


def test_new_code_upgrades_and_drains_what_the_release_stored(
    deployment: Deployment, old: Release, request: pytest.FixtureRequest
) -> None:
    deployment.command(old, "migrate", "up")
    leave_claims_and_failures(deployment, old)
    deployment.run(old, events=backlog())
    if deployment.place.redis_url:
        fill_outbox(deployment, old, request.getfixturevalue("broker"))

    deployment.command(NEW, "migrate", "up")
    with deployment.watched(NEW, events=[[job("named", id="named")]], cancel=CANCELLED) as watch:
        check_upgraded(watch.rows)
        notes = dict(deployment.notes())
        assert [notes[each] for each in CANCELLED] == ["cancel True", "cancel True", "cancel False"]
        deployment.run(NEW, AT_ONCE, events=[[job("twice", id="twice")]])
        [dead] = deployment.command(NEW, "bus", "dead", "list", "--json")
        assert (dead["listener"], dead["failures"], dead["error"]) == ("dying", 1, "Fault: dead")
        deployment.command(NEW, "bus", "dead", "retry", dead["id"])
        deployment.command(NEW, "bus", "unblock", "blocking", "step-blocked")
        worker = deployment.start(NEW, work=True)
        deployment.wait_ready(worker)
        watch.wait_drained("paused")
        assert deployment.ends("paused") == []
        deployment.command(NEW, "bus", "resume", "paused")
        watch.wait_drained()
        deployment.stop(worker)
    check_runs(deployment)


def check_upgraded(rows: dict[str, Row]) -> None:
    """Check the states of deliveries that no worker of the new code has claimed yet."""
    assert rows["dying"]["dead"] == 1
    assert (rows["versioned"]["parked"], rows["lined_versioned"]["parked"]) == (1, 1)
    assert rows["blocking"]["blocked_keys"] == {"step-blocked": "Fault: blocked"}
    assert rows["paused"]["paused"]


def leave_claims_and_failures(deployment: Deployment, old: Release) -> None:
    """Let a worker of the release fail, park, defer and hold deliveries; then kill it."""

    def has_met_all(rows: dict[str, Row]) -> bool:
        lines = {(each.kind, each.listener, each.key) for each in deployment.journal.lines()}
        return (
            rows["dying"]["dead"] == 1
            and rows["versioned"]["parked"] == rows["lined_versioned"]["parked"] == 1
            and rows["plain"]["ready"] == rows["lined"]["ready"] == 0
            and "step-blocked" in rows["blocking"]["blocked_keys"]
            and {("end", "once", "job-twice"), *FAULTS_MET} <= lines
        )

    with deployment.watched(old, pause=["paused"], events=FAULTY) as watch:
        worker = deployment.start(old, work=True, faulty=True, knows_new=False)
        deployment.wait_ready(worker)
        watch.wait(has_met_all, "each event has met its fault")
        deployment.kill(worker)


def backlog() -> list[list[Publish]]:
    """Return events in transactions, alone, with an id, and delayed."""
    together = [[each("a", n) for each in (job, step)] for n in range(1, BACKLOG)]
    return [*together, [job("a", BACKLOG)], [step("a", BACKLOG)], [job("named", id="named")], *LATER]


def fill_outbox(deployment: Deployment, old: Release, broker: RedisServer) -> None:
    """Let the release publish and cancel while the broker is down."""
    broker.kill()
    groups = [[job("outbox", n), step("outbox", n)] for n in range(1, 6)]
    delayed = [
        [job("outbox-soon", delay=SOON), step("outbox-soon", delay=SOON)],
        [job("outbox-far", delay=LONG, id="outbox far"), step("outbox", 6)],
    ]
    deployment.run(old, events=[*groups, *delayed], cancel=["outbox far"])
    broker.start()


def check_runs(deployment: Deployment) -> None:
    """Check that each event was handled as promised."""
    lines = [each for each in deployment.journal.lines() if not each.key.endswith("-far")]
    assert not any(each.listener for each in deployment.journal.lines() if each.key.endswith("-far"))
    for listener in ("plain", "paused", "dying"):
        assert violations(lines, listener, "Job", ordered=False, without="job-twice") == []
    assert violations(lines, "once", "Job", ordered=False) == []
    assert violations(lines, "versioned", "Job", "NewJob", ordered=False, without="job-twice") == []
    for listener in ("lined", "blocking"):
        assert violations(lines, listener, "Step", ordered=True) == []
    assert violations(lines, "lined_versioned", "Step", "NewStep", ordered=True) == []
    twice = Counter(
        listener for listener in ("plain", "once") for key, _ in deployment.ends(listener) if key == "job-twice"
    )
    assert twice == {"plain": 2, "once": 1}

    attempts = {(each.listener, each.key): each.attempt for each in lines if each.kind == "end" and each.n == 1}
    for listener, kind in (("plain", "job"), ("lined", "step")):
        assert attempts[listener, f"{kind}-retried"] == 2
        assert attempts[listener, f"{kind}-deferred"] == attempts[listener, f"{kind}-held"] == 1
    assert attempts["dying", "job-dead"] == 1
