"""The plots of the page, as SVG: `python -m tests.bench.plots RESULTS FOLDER`, in the environment `plots`."""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench.contenders import Contender, Kind
from tests.bench.report import plotted
from tests.bench.results import Results, load
from tests.bench.scenarios import SCENARIOS, Measure, Scenario

COLORS = {Kind.OURS: "#1f6feb", Kind.BARE: "#8b949e", Kind.PEER: "#d29922"}
PERCENTILES = {"p50_ms": "o", "p90_ms": "D", "p99_ms": "s"}
MARKERS = "osD^"


def draw(results: Results, scenario: Scenario, path: Path) -> None:
    """Draw the plot of a scenario; its description is the digest of its measurements."""
    if scenario.axis:
        figure = _growth(results, scenario)
    elif scenario.measure is Measure.LATENCY:
        figure = _latencies(results, scenario)
    else:
        figure = _bars(results, scenario)
    metadata = {"Date": None, "Description": results.digest(scenario.name)}
    figure.axes[0].set_title(scenario.title, fontsize=10)
    figure.savefig(path, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    # Its lines end without spaces, as all text of this project does.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text("utf-8").splitlines()), "utf-8")


def _measured(results: Results, scenario: Scenario, figure: str) -> list[tuple[Contender, int, float]]:
    """Return the contenders with a median of this figure, the smallest first."""
    [value] = results.values(scenario.name)
    found = [(each, value, results.median(scenario.name, each.name, value, figure)) for each in scenario.contenders]
    return sorted(((each, at, median) for each, at, median in found if median is not None), key=lambda it: it[2])


def _bars(results: Results, scenario: Scenario) -> Any:  # noqa: ANN401  # matplotlib's
    """Draw a bar for each contender, with the least and the greatest of its rounds."""
    name = "start_s" if scenario.measure is Measure.START else "rate"
    found = _measured(results, scenario, name)
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.3 * len(found)))
    for at, (contender, value, median) in enumerate(found):
        spread = results.spread(scenario.name, contender.name, value, name)
        low, high = (median - spread.least, spread.greatest - median) if spread is not None else (0.0, 0.0)
        axes.barh(at, median, xerr=[[low], [high]], color=COLORS[contender.kind], error_kw={"lw": 0.8})
    axes.set_yticks(range(len(found)), [contender.title for contender, _, _ in found])
    axes.set_xlabel("seconds" if name == "start_s" else "events per second (logarithmic)")
    if name == "rate":
        axes.set_xscale("log")
    return figure


def _latencies(results: Results, scenario: Scenario) -> Any:  # noqa: ANN401  # matplotlib's
    """Draw the percentiles of each contender on one line."""
    found = _measured(results, scenario, "p50_ms")[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.3 * len(found)))
    for at, (contender, value, _) in enumerate(found):
        marks = [results.median(scenario.name, contender.name, value, name) for name in PERCENTILES]
        axes.plot(marks, [at] * len(marks), "-", color=COLORS[contender.kind], lw=0.8)
        for mark, shape in zip(marks, PERCENTILES.values(), strict=True):
            axes.plot([mark], [at], shape, color=COLORS[contender.kind], ms=5)
    for name, shape in PERCENTILES.items():
        axes.plot([], [], shape, color="black", ms=5, label=name.removesuffix("_ms"))
    axes.set_yticks(range(len(found)), [contender.title for contender, _, _ in found])
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds (logarithmic)")
    axes.legend(fontsize=8)
    return figure


def _growth(results: Results, scenario: Scenario) -> Any:  # noqa: ANN401  # matplotlib's
    """Draw the rate over the values of the axis, a line for each contender."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    values = results.values(scenario.name)
    for contender, marker in zip(scenario.contenders, MARKERS, strict=False):
        spreads = [results.spread(scenario.name, contender.name, value, "rate") for value in values]
        found = [(value, each) for value, each in zip(values, spreads, strict=True) if each is not None]
        at = [value for value, _ in found]
        [line] = axes.plot(at, [each.median for _, each in found], marker=marker, ms=4, label=contender.title)
        axes.fill_between(
            at,
            [each.least for _, each in found],
            [each.greatest for _, each in found],
            color=line.get_color(),
            alpha=0.15,
        )
    if values[-1] > 10 * values[0]:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(scenario.axis)
    axes.set_ylabel("handled per second")
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Draw all plots of a file of results."""
    results, folder = load(Path(sys.argv[1])), Path(sys.argv[2])
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "beneath", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in SCENARIOS:
        if plotted(scenario) and results.values(scenario.name):
            draw(results, scenario, folder / f"{scenario.name}.svg")


if __name__ == "__main__":
    main()
