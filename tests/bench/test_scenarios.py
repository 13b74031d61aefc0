import ast
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench.contenders import CONTENDERS, PEERS, Contender, Kind, Mode
from tests.bench.environments import BUILD, PLOTS, ROOT, pinned_version, requirements
from tests.bench.protocol import TASKS, Job, Shape
from tests.bench.report import plotted
from tests.bench.run import plan
from tests.bench.scenarios import LARGEST_BACKLOG, SCENARIOS, Measure, Scenario, work

EVERYTHING = frozenset(CONTENDERS)

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda it: it.name)
peers = pytest.mark.parametrize("peer", PEERS, ids=lambda it: it.name)


def imports(file: Path) -> set[str]:
    """Return the top-level packages and the modules of this project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return {name if name.startswith("tests.") else name.partition(".")[0] for name in found}


def test_names_are_unique() -> None:
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
    assert {name: each.name for name, each in CONTENDERS.items()} == {name: name for name in CONTENDERS}


@scenarios
def test_quick_run_measures_less(scenario: Scenario) -> None:
    assert set(scenario.quick) <= set(scenario.whole) or scenario.quick[0] < scenario.whole[0]
    assert len(scenario.quick) <= len(scenario.whole)
    assert scenario.repeats(quick=True) <= scenario.repeats(quick=False)


@scenarios
@pytest.mark.parametrize("quick", [True, False])
def test_amount_of_work_suits_the_batches(scenario: Scenario, quick: bool) -> None:
    for contender in scenario.contenders:
        for value in scenario.points(quick=quick):
            amount = work(scenario, contender, value, quick=quick)
            assert amount.events > 0
            assert amount.events * amount.shape.payload <= LARGEST_BACKLOG
            assert amount.deliveries in {0, amount.events * amount.shape.fan_out}
            if scenario.measure is Measure.PUBLISH:
                assert amount.events % TASKS == 0
                assert amount.mode in contender.modes or scenario.mode is Mode.ONE


def test_axes_reach_from_small_to_large() -> None:
    axes = {each.name: (each.whole[0], each.whole[-1]) for each in SCENARIOS if each.axis}
    assert axes == {
        "backlog": (1_000, 1_000_000),
        "listeners": (1, 200),
        "fan_out": (1, 20),
        "keys": (10, 100_000),
        "payload": (100, 1_000_000),
        "delayed": (100_000, 100_000),
        "processes": (1, 4),
    }


def test_growth_axes_change_what_they_name() -> None:
    contender = CONTENDERS["ours-redis"]
    shapes = {each.name: work(each, contender, each.whole[-1], quick=False) for each in SCENARIOS if each.axis}
    assert shapes["listeners"].shape == Shape(types=200)
    assert shapes["fan_out"].shape == Shape(fan_out=20)
    assert shapes["fan_out"].deliveries == 20 * shapes["fan_out"].events
    assert shapes["keys"].shape == Shape(keys=100_000)
    assert shapes["keys"].events == 100_000
    assert shapes["payload"].shape == Shape(payload=1_000_000)
    assert shapes["delayed"].shape == Shape(delayed=True)
    assert shapes["processes"].workers == 4
    assert shapes["backlog"].events == 1_000_000


def test_plan_alternates_contenders_in_every_round() -> None:
    [consume] = [each for each in SCENARIOS if each.name == "consume"]
    steps = plan([consume], frozenset({"ours-redis", "bare-redis", "repid"}), quick=False)
    assert [(step.round, step.contender.name) for step in steps] == [
        *((0, name) for name in ("ours-redis", "bare-redis", "repid")),
        *((1, name) for name in ("bare-redis", "repid", "ours-redis")),
        *((2, name) for name in ("repid", "ours-redis", "bare-redis")),
    ]


def test_plan_covers_every_scenario_and_every_contender() -> None:
    steps = plan(SCENARIOS, EVERYTHING, quick=True)
    assert {step.scenario.name for step in steps} == {each.name for each in SCENARIOS}
    assert {step.contender.name for step in steps} == EVERYTHING - {"memory"}
    assert len(plan(SCENARIOS, EVERYTHING, quick=True, rounds=2)) == 2 * len(steps)


def test_job_survives_its_command_line() -> None:
    job = Job(role="work", url="sqlite:////a b.db", count=3, shape=Shape(keys=7), broker="redis://x", wait=True)
    assert Job.parse(job.text()) == job


@peers
def test_peer_has_a_script_and_pinned_requirements_without_addresses(peer: Contender) -> None:
    assert (ROOT / f"{peer.module.replace('.', '/')}.py").exists()
    assert peer.environment is not None
    assert pinned_version(peer.environment, peer.environment)
    assert peer.kind is Kind.PEER


@pytest.mark.parametrize("name", sorted({peer.environment or "" for peer in PEERS} | {PLOTS}))
def test_requirements_are_pinned(name: str) -> None:
    lines = requirements(name).read_text("utf-8").splitlines()
    assert lines
    assert [line for line in lines if "==" not in line or ":" in line or "/" in line] == []


@peers
def test_script_of_a_peer_imports_nothing_of_this_project_but_the_protocol(peer: Contender) -> None:
    used = imports(ROOT / f"{peer.module.replace('.', '/')}.py")
    assert {name for name in used if name.startswith("tests.")} <= {
        "tests.bench.protocol",
        "tests.bench.peers.faststream",
    }
    assert not used & {"bus", "infra", "dependencies", "models", "services", "beneath"}


def test_protocol_needs_the_standard_library_alone() -> None:
    assert imports(Path(__file__).with_name("protocol.py")) <= sys.stdlib_module_names


def test_environments_are_outside_of_the_repository() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert f"/{BUILD.relative_to(ROOT).parts[0]}/" in ignored


def test_scenarios_with_several_contenders_or_values_are_plotted() -> None:
    assert {each.name for each in SCENARIOS if not plotted(each)} == {"delayed", "outbox"}


def test_documented_command_names_scenarios_and_contenders() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    [line] = [each for each in text.splitlines() if "-m tests.bench.run" in each]
    words = line.split()
    named = [(option, name) for option, name in pairwise(words) if option in {"--scenario", "--contender"}]
    assert len(named) > 1
    known = {"--scenario": {each.name for each in SCENARIOS}, "--contender": set(CONTENDERS)}
    assert [name for option, name in named if name not in known[option]] == []
