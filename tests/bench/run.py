"""`make bench`: measures this project, bare client loops and peers in one run, and writes docs/benchmarks.md.

It starts the servers itself, and makes an environment for each peer under build/bench at its first use.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tests.bench import report
from tests.bench.contenders import CONTENDERS, Contender, Kind
from tests.bench.environments import BUILD, PLOTS, ROOT, NotInstalled, interpreter, pinned_version
from tests.bench.measurement import measure
from tests.bench.places import Places
from tests.bench.results import Measurement, Results, interleaved, load, machine, save, versions
from tests.bench.scenarios import SCENARIOS, Scenario, work

RAW = "benchmarks.json"
PAGE = "benchmarks.md"
FIGURES = "benchmarks"
"""The folder of the plots, beside the page."""


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement of a run."""

    scenario: Scenario
    contender: Contender
    value: int
    round: int


def plan(
    scenarios: Sequence[Scenario], contenders: frozenset[str], *, quick: bool, rounds: int | None = None
) -> list[Step]:
    """Return all steps: the contenders alternate in each round."""
    steps = []
    for scenario in scenarios:
        names = [each.name for each in scenario.contenders if each.name in contenders]
        for value in scenario.points(quick=quick):
            order = interleaved(names, rounds or scenario.repeats(quick=quick))
            steps += [Step(scenario, CONTENDERS[name], value, number) for number, name in order]
    return steps


def carry_out(step: Step, places: Places, *, quick: bool) -> Measurement:
    """Carry out one step; a failure is part of the results."""
    named = step.scenario.name, step.contender.name, step.value, step.round
    amount = work(step.scenario, step.contender, step.value, quick=quick)
    try:
        return Measurement(*named, measure(places, step.scenario, step.contender, amount))
    except Exception as error:  # noqa: BLE001  # one step does not end a run of half an hour
        return Measurement(*named, {}, f"{type(error).__name__}: {error}")


def install(contenders: frozenset[str]) -> None:
    """Make the environments that are missing; a peer whose environment cannot be made fails in its steps."""
    names = {CONTENDERS[name].environment for name in contenders} - {None}
    with typer.progressbar(sorted(name for name in names if name), label="environments of peers") as waiting:
        for name in waiting:
            try:
                interpreter(name)
            except NotInstalled as error:
                typer.echo(f"\n{name} cannot be installed: {error}", err=True)


def peer_versions(contenders: frozenset[str]) -> dict[str, str]:
    """Return the pinned version of each measured peer."""
    peers = [CONTENDERS[name] for name in sorted(contenders) if CONTENDERS[name].kind is Kind.PEER]
    names = sorted({each.environment for each in peers if each.environment})
    return {name: pinned_version(name, name) for name in names}


def write(results: Results, folder: Path) -> None:
    """Write the raw results, the plots and the page."""
    save(results, folder / RAW)
    results = load(folder / RAW)
    (folder / PAGE).write_text(report.page(results), "utf-8")
    command = [str(interpreter(PLOTS)), "-m", "tests.bench.plots", str(folder / RAW), str(folder / FIGURES)]
    subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603  # this project's module
    readme = ROOT / "README.md"
    if folder == ROOT / "docs":
        readme.write_text(report.quoted(readme.read_text("utf-8"), results), "utf-8")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round of fewer points: about 3 minutes.")] = False,
    scenario: Annotated[list[str] | None, typer.Option(help="Only this scenario; repeatable.")] = None,
    contender: Annotated[list[str] | None, typer.Option(help="Only this contender; repeatable.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each scenario.")] = None,
    output: Annotated[Path | None, typer.Option(help="The folder of the page: docs, or build/bench if quick.")] = None,
) -> None:
    """Measure, print the tables, and write the page with its plots and raw results."""
    known = {each.name: each for each in SCENARIOS}
    for chosen, names in ((scenario, known), (contender, CONTENDERS)):
        if unknown := sorted(set(chosen or ()) - set(names)):
            raise typer.BadParameter(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
    scenarios = tuple(each for each in SCENARIOS if not scenario or each.name in scenario)
    contenders = frozenset(contender or CONTENDERS)
    steps = plan(scenarios, contenders, quick=quick, rounds=rounds)
    install(frozenset(step.contender.name for step in steps))
    began = time.monotonic()
    with closing(Places()) as places:
        with typer.progressbar(steps, label="measurements", show_pos=True, item_show_func=_shown) as bar:
            measurements = [carry_out(step, places, quick=quick) for step in bar]
        found_versions = versions() | places.versions()
    results = Results(
        made=datetime.now(UTC).date().isoformat(),
        quick=quick,
        machine=machine(),
        versions=found_versions | peer_versions(contenders),
        measurements=measurements,
    )
    typer.echo(report.page(results))
    folder = output or (BUILD if quick else ROOT / "docs")
    write(results, folder)
    typer.echo(f"{len(steps)} measurements in {time.monotonic() - began:.0f} s; see {folder / PAGE}")
    sys.exit(any(CONTENDERS[each.contender].kind is not Kind.PEER for each in results.failures()))


def _shown(step: Step | None) -> str:
    """Return what the progress bar shows of a step."""
    return f"{step.scenario.name} {step.value or ''} {step.contender.title}" if step is not None else ""


if __name__ == "__main__":
    typer.run(main)
