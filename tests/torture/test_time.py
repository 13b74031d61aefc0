"""Delays, cancellations and timeouts, across processes."""

import time
from random import Random

import pytest

from tests.e2e.processes import until
from tests.torture.checker import check, overlapping
from tests.torture.events import Job, Step
from tests.torture.fleet import Fleet
from tests.torture.opening import Opened

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_delayed_events_are_never_early_and_never_delivered_after_cancellation(fleet: Fleet) -> None:
    workers = fleet.pair("done")
    random, start = Random(4), time.time() + 4
    due = {n: start + random.uniform(0, 1.5) for n in range(100)}
    ids = fleet.run(lambda site: schedule(site, due))
    # Half of them are cancelled around their due time, where either outcome is valid.
    whens = {n: due[n] + random.uniform(-0.05, 0.05) if n < 50 else start - 1 for n in range(0, 100, 2)}
    canceller = fleet.start(
        program="canceller",
        work=False,
        arguments={"ids": [ids[n] for n in whens], "whens": [str(when) for when in whens.values()]},
    )
    assert canceller.wait() == 0, canceller.stderr
    cancelled = {each.id for each in fleet.journal.of("note") if each.text == "cancelled"}
    fleet.wait_empty()
    fleet.stop(*workers)

    runs = fleet.runs("done")
    assert {each.id for each in runs} == set(ids.values()) - cancelled
    fleet.accept("a", [n for n, id_ in ids.items() if id_ not in cancelled])
    assert [each.n for each in runs if each.at < due[each.n]] == []
    assert check(fleet.journal.lines(), "done", ordered=False) == []
    late = max(each.at - due[each.n] for each in runs)
    print(f"{len(cancelled)} of {len(whens)} cancelled; the latest fired {late:.3f} s late")  # noqa: T201


async def schedule(site: Opened, due: dict[int, float]) -> dict[int, str]:
    """Publish a delayed event for each time; return the ids."""
    return {n: await site.bus.publish_delayed(Job(key="a", n=n), max(0, when - time.time())) for n, when in due.items()}


def test_timed_out_handler_is_retried_and_never_overlaps_with_itself(fleet: Fleet) -> None:
    workers = fleet.pair("impatient")
    # For each key one event that exceeds the timeout, and one that must wait for it.
    fleet.publish([Step(key="stops", n=1), Step(key="goes on", n=2), Step(key="stops", n=3), Step(key="goes on", n=3)])
    until(lambda: len(fleet.runs("impatient", "end")) == 4, "all are handled")
    fleet.stop(*workers)

    runs = fleet.runs("impatient")
    assert [(each.n, each.attempt) for each in runs if each.key == "stops"] == [(1, 1), (1, 2), (3, 1)]
    assert [(each.n, each.attempt) for each in runs if each.key == "goes on"] == [(2, 1), (2, 2), (3, 1)]
    assert overlapping(fleet.journal.lines(), "impatient") == []
