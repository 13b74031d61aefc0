"""The raw results of a run, their file, and their statistics."""

import hashlib
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

OURS_LIBRARIES = ("redis", "hiredis", "asyncpg", "msgspec", "SQLAlchemy")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one measurement has found, or why it failed."""

    scenario: str
    contender: str
    value: int
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, with the least and the greatest."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements of one run, and where it took place."""

    made: str
    """The day, as YYYY-MM-DD."""

    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    measurements: list[Measurement]

    def spread(self, scenario: str, contender: str, value: int, figure: str) -> Spread | None:
        """Return the statistics of one figure over all rounds; None if no measurement has it."""
        return spread(each.figures[figure] for each in self.of(scenario, contender, value) if figure in each.figures)

    def median(self, scenario: str, contender: str, value: int, figure: str) -> float | None:
        """Return the median of one figure over all rounds; None if no measurement has it."""
        found = self.spread(scenario, contender, value, figure)
        return None if found is None else found.median

    def of(self, scenario: str, contender: str, value: int) -> list[Measurement]:
        """Return the measurements of one contender with one value, without those that failed."""
        wanted = (scenario, contender, value)
        return [
            each
            for each in self.measurements
            if (each.scenario, each.contender, each.value) == wanted and not each.error
        ]

    def values(self, scenario: str) -> list[int]:
        """Return the measured values of a scenario, in order."""
        return sorted({each.value for each in self.measurements if each.scenario == scenario})

    def digest(self, scenario: str) -> str:
        """Return a digest of the measurements of a scenario, by which its plot is recognised."""
        found = [asdict(each) for each in self.measurements if each.scenario == scenario]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]

    def failures(self) -> list[Measurement]:
        """Return the measurements that failed."""
        return [each for each in self.measurements if each.error]


def spread(figures: Iterable[float]) -> Spread | None:
    """Return the median, the least and the greatest of some figures; None without figures."""
    found = list(figures)
    return Spread(statistics.median(found), min(found), max(found)) if found else None


def save(results: Results, path: Path) -> None:
    """Write the results as JSON, one measurement to a line."""
    head = {name: value for name, value in asdict(results).items() if name != "measurements"}
    lines = ",\n".join(json.dumps(_rounded(each)) for each in results.measurements)
    text = json.dumps(head, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text},\n "measurements": [\n{lines}\n]\n}}\n', "utf-8")


def load(path: Path) -> Results:
    """Return the results of a file."""
    values = json.loads(path.read_text("utf-8"))
    measurements = [Measurement(**each) for each in values.pop("measurements")]
    return Results(**values, measurements=measurements)


def machine() -> dict[str, str]:
    """Return what distinguishes this machine, without its name."""
    found = {"system": f"{platform.system()} {platform.release().partition('-')[0]}", "processor": _processor()}
    found["cores"] = str(os.cpu_count())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {**found, "memory": f"{memory:.0f} GiB"}


def versions() -> dict[str, str]:
    """Return the versions of this process's Python, SQLite and clients."""
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    return found | {name: version(name) for name in OURS_LIBRARIES}


def interleaved(names: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Return the order of measurements: in each round all, and each round begins with another one."""
    return [(number, names[(at + number) % len(names)]) for number in range(rounds) for at in range(len(names))]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(measurement: Measurement) -> dict[str, object]:
    """Return the fields of a measurement, with four significant digits of each figure."""
    figures = {name: float(f"{value:.4g}") for name, value in measurement.figures.items()}
    return {**asdict(measurement), "figures": figures}
