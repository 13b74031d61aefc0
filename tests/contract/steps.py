"""The random steps of the state machine."""

import itertools
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from infra.mq import Outcome
from tests.contract.model import LINE, PLAIN

ANY = range(8)
"""Indexes by which a step chooses among a varying number of items."""

EITHER = (0, 1)
NAMES = (PLAIN, LINE)
KEYS = ("a", "b")

Step = tuple[str, dict[str, Any]]


def every(step: str, /, **values: Iterable[Any]) -> list[Step]:
    """Return the step of the given name with each combination of the values."""
    return [(step, dict(zip(values, each, strict=True))) for each in itertools.product(*values.values())]


def steps() -> st.SearchStrategy[Step]:
    """Return the strategy for the next step: usual steps are three times as frequent as rare ones.

    All steps share one strategy because Hypothesis omits whole rules from a run, and most bugs need
    a publish, a fetch, a crash and a settlement in one run.
    """
    leaving = [it for it in Outcome if it is not Outcome.DONE]
    usual = [
        every("publish", queue=EITHER, key=KEYS, delay=[None, None, None, 0.5, 3.0], times=[1, 2, 3]),
        every("fetch", which=EITHER, name=NAMES, limit=[1, 2, 4]),
        every("succeed", which=ANY, done=[1, 2, 10]),
        every("fail", which=ANY, done=[0, 0, 1, 2], outcome=leaving, delay=[0.0, 0.0, 2.0]),
    ]
    rare = [
        every("publish_again", which=ANY, key=KEYS),
        every("cancel", which=ANY),
        every("reschedule", which=ANY, key=KEYS, delay=[0.5, 3.0]),
        every("settle_again", which=ANY, by=EITHER, outcome=leaving),
        every("advance", seconds=[0.25, 0.5, 1.0, 5.0]),
        every("isolate", which=ANY),
        every("crash", which=EITHER),
        every("recover", which=EITHER),
        every("take_over", which=EITHER),
        every("poison", which=ANY),
        every("close", which=EITHER),
        every("unpark"),
        every("unblock", which=ANY, skip=[False, True]),
        every("wait", which=EITHER, name=NAMES, limit=[1, 3], end=["publish", "publish", "wake", "time"]),
        every("cancel_a_fetch", which=EITHER, name=NAMES, key=KEYS, pause=[0, 1, 3, 10]),
        every("rename", name=NAMES, queue=EITHER),
        every("retire_the_event", name=NAMES),
        every("retire", name=NAMES, backlog=["refuse", "discard", "dead"]),
        every("pause", name=NAMES),
        every("end_a_dead_letter", which=ANY, discard=[False, True]),
    ]
    return st.one_of([st.sampled_from(it) for it in [*usual, *usual, *usual, *rare]])
