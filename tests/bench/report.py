"""The page of a run: tables of medians with their spread, the settings, and what is not comparable."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence

from tests.bench.contenders import CONTENDERS, Contender, Kind
from tests.bench.results import Results, Spread
from tests.bench.scenarios import SCENARIOS, Measure, Scenario

INTRODUCTION = """\
# Benchmarks

This page is written by one command, which starts the servers, makes an environment for each peer, and measures
everything alternately in one run:

```sh
make bench
```

It takes about half an hour. `make bench QUICK=1` takes about three minutes, and writes into `build/bench` instead. The
raw results are in [benchmarks.json](benchmarks.json).

Absolute figures hold for one machine. Compare the figures of one table with each other: they come from the same
minutes of the same machine.
"""

CONDITIONS = """\
- Each measurement runs in new processes, on an empty queue. The contenders alternate, and each round begins with
  another one. Tables show the median of all rounds, and the least and the greatest after it.
- An event has five fields: about 120 bytes of msgpack, 150 bytes of JSON. The handler counts it and does nothing else.
- Handled events a second are counted from the first handled event to the last, in one worker process unless said.
  The start is the time from the start of the process to its first event.
- CPU is counted for each event: of the worker's process between its first and its last event, and of the server in the
  same time, the start of the worker included. Memory of a worker is its peak; memory of a server is what is resident
  and neither shared nor backed by a file, when all events are handled.
- Redis runs without persistence. PostgreSQL and SQLite sync each COMMIT to the disk.
- A bare loop does the same work with the client alone, and is what the machine allows.
"""

HEADLINES = re.compile(r"(?<=<!-- begin of make bench -->\n).*?(?=<!-- end of make bench -->)", re.DOTALL)
"""The part of the README that the command writes."""

WIDTH = 120

Columns = Sequence[tuple[str, Callable[[Results, Scenario, Contender, int], str]]]


def number(value: float | None) -> str:
    """Return a figure with three significant digits, or a dash."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value >= 100 or value == 0 else f"{value:#.3g}".rstrip(".")


def with_spread(found: Spread | None) -> str:
    """Return the median, with the least and the greatest if there are several."""
    if found is None:
        return "-"
    if found.least == found.greatest:
        return number(found.median)
    return f"{number(found.median)} ({number(found.least)} to {number(found.greatest)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all but the first column are aligned to the right if they are figures."""
    body = list(rows)
    figures = [all(re.match(r"^[-\d(]", row[at]) for row in body) and at > 0 for at in range(len(head))]
    lines = [head, ["---:" if is_figure else "---" for is_figure in figures], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(results: Results) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, _place(results), "## Conditions\n\n" + CONDITIONS]
    parts += [_section(results, each) for each in SCENARIOS if results.values(each.name)]
    parts += [_settings(results), _failures(results)]
    return "\n".join(part for part in parts if part)


def headlines(results: Results) -> str:
    """Return the lines that the README quotes, with their conditions; empty if the run lacks their figures."""
    rates = [_rate_line(results, "Redis", "repid"), _rate_line(results, "PostgreSQL", "pgqueuer")]
    lines = [*rates, _latency_line(results)]
    if not all(lines):
        return ""
    conditions = (
        f"Measured on {results.made}: {results.machine['cores']} cores of {results.machine['processor']}, Python "
        f"{results.versions['Python']}; events of 120 bytes, handlers that do nothing, one worker process, Redis "
        f"without persistence, every COMMIT of PostgreSQL and SQLite on disk; medians of interleaved rounds."
    )
    return "\n".join([*(_wrapped(f"- {line}") for line in lines), "", _wrapped(conditions), ""])


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def quoted(readme: str, results: Results) -> str:
    """Return the README with the lines of this run, where it quotes some."""
    lines = headlines(results)
    return HEADLINES.sub(lambda _: lines, readme) if lines else readme


def _rate_line(results: Results, server: str, peer: str) -> str:
    name = server.lower().removesuffix("ql")
    ours, bare, other = (results.median("consume", each, 0, "rate") for each in (f"ours-{name}", f"bare-{name}", peer))
    if ours is None or bare is None or other is None:
        return ""
    title = CONTENDERS[peer].title
    return (
        f"{server}: {number(ours)} events handled a second, {ours / bare:.0%} of a bare client loop; {title}, the "
        f"fastest peer that calls a handler for each event: {number(other)}"
    )


def _latency_line(results: Results) -> str:
    parts = []
    for name, title in (("ours-redis", "Redis"), ("ours-postgres", "PostgreSQL"), ("ours-sqlite", "SQLite")):
        [value] = results.values("latency") or [0]
        half, slow = (results.median("latency", name, value, each) for each in ("p50_ms", "p99_ms"))
        if half is None or slow is None:
            return ""
        parts.append(f"{title} {number(half)} and {number(slow)} ms")
    what = "from publish to handler in two processes at 200 events a second, median and 99th percentile"
    return f"{what}: {', '.join(parts)}"


def _place(results: Results) -> str:
    machine = "; ".join(f"{name}: {value}" for name, value in results.machine.items())
    names = sorted(results.versions, key=str.lower)
    versions = ", ".join(f"{name} {results.versions[name]}" for name in names)
    quick = "This was a quick run: one round with few events, for orientation only.\n\n" if results.quick else ""
    return f"{quick}Made on {results.made}. {machine[0].upper()}{machine[1:]}.\n\nVersions: {versions}.\n"


def _figure(name: str) -> Callable[[Results, Scenario, Contender, int], str]:
    return lambda results, scenario, contender, value: number(
        results.median(scenario.name, contender.name, value, name)
    )


def _spread(name: str) -> Callable[[Results, Scenario, Contender, int], str]:
    return lambda results, scenario, contender, value: with_spread(
        results.spread(scenario.name, contender.name, value, name)
    )


def _beside_bare(results: Results, scenario: Scenario, contender: Contender, value: int) -> str:
    """Return the share of the bare loop's rate on the same server."""
    ours = results.median(scenario.name, contender.name, value, "rate")
    bare = results.median(scenario.name, f"bare-{contender.server}", value, "rate")
    return f"{ours / bare:.0%}" if ours is not None and bare else "-"


def _beside_first(results: Results, scenario: Scenario, contender: Contender, value: int) -> str:
    """Return the share of the rate with the first value."""
    ours = results.median(scenario.name, contender.name, value, "rate")
    first = results.median(scenario.name, contender.name, results.values(scenario.name)[0], "rate")
    return f"{ours / first:.0%}" if ours is not None and first else "-"


def _differs(results: Results, scenario: Scenario, contender: Contender, value: int) -> str:
    return contender.differs


COST: Columns = (
    ("CPU us, worker", _figure("cpu_us")),
    ("CPU us, server", _figure("server_cpu_us")),
    ("MB, worker", _figure("memory_mb")),
    ("MB, server", _figure("server_memory_mb")),
)

COLUMNS: dict[Measure, Columns] = {
    Measure.CONSUME: (
        ("handled/s", _spread("rate")),
        ("of the bare loop", _beside_bare),
        *COST,
        ("start, s", _figure("start_s")),
        ("not comparable", _differs),
    ),
    Measure.LATENCY: (
        ("p50 ms", _spread("p50_ms")),
        ("p90 ms", _figure("p90_ms")),
        ("p99 ms", _spread("p99_ms")),
        ("longest ms", _figure("max_ms")),
        ("first event ms", _spread("first_ms")),
        *COST[:2],
        ("not comparable", _differs),
    ),
    Measure.PUBLISH: (
        ("published/s", _spread("rate")),
        ("of the bare loop", _beside_bare),
        ("CPU us, publisher", _figure("cpu_us")),
        *COST[1:2],
        ("not comparable", _differs),
    ),
    Measure.STREAM: (("handled/s", _spread("rate")), ("CPU us, publisher and worker", _figure("cpu_us")), *COST[1:]),
    Measure.START: (("ready after s", _spread("start_s")), ("MB, idle", _spread("memory_mb"))),
}

GROWTH: Columns = (
    ("handled/s", _spread("rate")),
    ("of the first row", _beside_first),
    *COST,
    ("MB of the backlog", _figure("backlog_mb")),
)


def _section(results: Results, scenario: Scenario) -> str:
    columns = GROWTH if scenario.axis else COLUMNS[scenario.measure]
    rows = []
    for contender in _ranked(results, scenario):
        for value in results.values(scenario.name):
            if results.of(scenario.name, contender.name, value):
                axis = [f"{value:,}"] if scenario.axis else []
                figures = [made(results, scenario, contender, value) for _, made in columns]
                rows.append([contender.title, *axis, *figures])
    head = ["", *([scenario.axis] if scenario.axis else []), *(name for name, _ in columns)]
    plot = f"\n![{scenario.title}](benchmarks/{scenario.name}.svg)\n" if plotted(scenario) else ""
    return f"## {scenario.title}\n\n{table(head, rows)}{plot}"


def plotted(scenario: Scenario) -> bool:
    """Return whether a scenario has a plot: one with several contenders or several values."""
    return len(scenario.contenders) > 1 and len(scenario.whole) > (1 if scenario.axis else 0)


def _ranked(results: Results, scenario: Scenario) -> list[Contender]:
    """Return ours first, then the bare loops, then the peers, each from the best to the worst; growth as declared."""
    if scenario.axis:
        return list(scenario.contenders)
    kinds = list(Kind)
    [value] = results.values(scenario.name)

    def place(contender: Contender) -> tuple[int, float]:
        rate = results.median(scenario.name, contender.name, value, "rate")
        latency = results.median(scenario.name, contender.name, value, "p50_ms")
        return kinds.index(contender.kind), -rate if rate is not None else latency or 0.0

    return sorted(scenario.contenders, key=place)


def _settings(results: Results) -> str:
    names = {each.contender for each in results.measurements}
    rows = [
        (each.title, each.server, each.settings, each.acknowledges)
        for each in CONTENDERS.values()
        if each.name in names
    ]
    head = ("", "server", "settings", "acknowledges")
    text = (
        "Each peer runs with the fastest of its documented settings that this machine showed, with at-least-once "
        "delivery where it has that.\n"
    )
    return f"## Settings, and who acknowledges when\n\n{text}\n{table(head, rows)}"


def _failures(results: Results) -> str:
    failed = {(each.scenario, CONTENDERS[each.contender].title, each.error) for each in results.failures()}
    if not failed:
        return ""
    return f"## What failed\n\n{table(('scenario', 'contender', 'error'), sorted(failed))}"
