"""Hostile handlers neither end the worker nor affect other deliveries, and count exactly the failures that they cause.

`pytest tests/bus/hostile --hypothesis-profile=thorough` searches longer, from a new random seed each time.
"""

import asyncio
import tempfile
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from infra.clock import FakeClock
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.hostile.acts import IN_LOOP, IN_THREAD
from tests.bus.hostile.runner import MAX_ATTEMPTS, ScriptRunner, Scripts, expected
from tests.contract.budget import search
from tests.contract.harness import DRIVERS, chosen_drivers


def scripts_of(acts: dict[str, object], events: int) -> st.SearchStrategy[list[list[str]]]:
    script = st.lists(st.sampled_from(sorted(acts)), max_size=4)
    return st.lists(script, min_size=events, max_size=events)


SCRIPTS = st.integers(1, 6).flatmap(
    lambda events: st.fixed_dictionaries(
        {
            "loop": scripts_of(dict(IN_LOOP), events),
            "ordered": scripts_of(dict(IN_LOOP), events),
            "thread": scripts_of(dict(IN_THREAD), events),
        }
    )
)


async def check(runner: ScriptRunner) -> None:
    await runner.run()
    assert runner.leaks == []
    for name, acts in (("loop", IN_LOOP), ("ordered", IN_LOOP), ("thread", IN_THREAD)):
        want_dead = 0
        for n, script in enumerate(runner.scripts[name]):
            record = runner.records[name, n]
            is_dead, failures = expected(script, acts)
            want_dead += is_dead
            assert record.done is not is_dead, (name, n, script)
            attempts = failures + (0 if is_dead else 1)
            assert record.calls >= attempts, (name, n, script)
            if not runner.exits:  # after an exit, calls may be repeated: a shutdown or a takeover ended them
                assert record.calls == attempts + record.spent, (name, n, script)
        dead = await runner.queue.dead_letters(subscription=name)
        assert [it.failures for it in dead] == [MAX_ATTEMPTS] * want_dead, (name, dead)
        assert all(it.crashes < 3 for it in dead), dead
    for key in (0, 1):
        done = [n for name, n in runner.order if name == "ordered" and n % 2 == key]
        assert done == sorted(done)
    stats = await runner.queue.stats()
    assert all((it.ready, it.retrying, it.in_flight, it.parked, it.blocked) == (0, 0, 0, 0, 0) for it in stats), stats


async def on_memory(scripts: Scripts) -> None:
    clock = FakeClock()
    queue = MemoryQueue(clock=clock, lease=float("inf"))
    await queue.open()
    await check(ScriptRunner(queue, clock, scripts, pace=0.0))
    await queue.close()


async def on_driver(name: str, scripts: Scripts) -> None:
    clock = FakeClock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        path.mkdir()
        async with DRIVERS[name].open(path, clock) as harness:
            await check(ScriptRunner(await harness.queue(), clock, scripts, pace=0.02))


@pytest.fixture(autouse=True)
def quiet() -> None:
    structlog.contextvars.clear_contextvars()


CANCELLED_BESIDE_AN_EXIT: Scripts = {
    "loop": [["fail with variables"], [], [], []],
    "ordered": [
        ["exit"],
        ["cancel itself and return", "exit", "exit in a group", "set variables"],
        [],
        ["hang in a group"],
    ],
    "thread": [[], [], [], []],
}
"""A regression: the cancellation reached the next delivery of the mailbox, just after another handler had exited."""


@pytest.mark.timeout(600)
@search(100)
@given(scripts=SCRIPTS)
@example(scripts=CANCELLED_BESIDE_AN_EXIT)
def test_worker_survives_any_sequence_of_hostile_handlers(scripts: Scripts) -> None:
    asyncio.run(on_memory(scripts))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", [name for name in chosen_drivers() if name != "memory"])
def test_worker_survives_hostile_handlers_on_every_driver(driver: str) -> None:
    @search(6, shrink=False)
    @given(scripts=SCRIPTS)
    def run(scripts: Scripts) -> None:
        asyncio.run(on_driver(driver, scripts))

    run()


@pytest.mark.parametrize("name", [*IN_LOOP])
def test_each_hostile_act_has_its_expected_cost(name: str) -> None:
    asyncio.run(on_memory({"loop": [[name], []], "ordered": [[name], []], "thread": [[], []]}))


@pytest.mark.parametrize("name", [*IN_THREAD])
def test_each_hostile_act_in_a_thread_has_its_expected_cost(name: str) -> None:
    asyncio.run(on_memory({"loop": [[]], "ordered": [[]], "thread": [[name], []]}))
