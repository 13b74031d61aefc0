"""The smallest slice of the whole chain, without peers and servers: processes, figures, raw results, page."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.bench.children import MeasurementFailed
from tests.bench.contenders import CONTENDERS, MEMORY, Contender, Mode
from tests.bench.measurement import UNITS, measure
from tests.bench.places import Places
from tests.bench.protocol import Shape
from tests.bench.report import page
from tests.bench.results import Measurement, Results, load, save
from tests.bench.scenarios import SCENARIOS, Work

pytestmark = pytest.mark.e2e

OURS, BARE = CONTENDERS["ours-sqlite"], CONTENDERS["bare-sqlite"]
SMALL = Work(events=200, deliveries=200)
NAMED = {each.name: each for each in SCENARIOS}


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with closing(Places()) as opened:
        yield opened


@pytest.mark.parametrize("contender", [MEMORY, OURS, BARE], ids=lambda it: it.name)
def test_backlog_is_handled(places: Places, contender: Contender, tmp_path: Path) -> None:
    figures = measure(places, NAMED["consume"], contender, SMALL)
    assert figures.keys() == {"rate", "cpu_us", "memory_mb", "start_s"}
    assert figures.keys() <= UNITS.keys()
    assert min(figures.values()) > 0
    path = tmp_path / "results.json"
    save(Results("2026-01-02", True, {"cores": "2"}, {}, [Measurement("consume", contender.name, 0, 0, figures)]), path)
    assert f"| {contender.title} |" in page(load(path))


@pytest.mark.parametrize(
    ("scenario", "work"),
    [
        ("processes", Work(events=100, deliveries=100, workers=2, shape=Shape(keys=10, payload=50))),
        ("fan_out", Work(events=100, deliveries=200, shape=Shape(types=5, fan_out=2))),
    ],
)
def test_shapes_are_handled(places: Places, scenario: str, work: Work) -> None:
    assert measure(places, NAMED[scenario], OURS, work)["rate"] > 0


def test_latency_is_measured_in_two_processes(places: Places) -> None:
    figures = measure(places, NAMED["latency"], OURS, Work(events=20, deliveries=20))
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert figures["first_ms"] > 0


def test_publishing_is_measured(places: Places) -> None:
    work = Work(events=100, deliveries=0, mode=Mode.TOGETHER)
    assert measure(places, NAMED["publish_together"], OURS, work)["rate"] > 0


def test_failed_process_is_reported_with_its_last_words(places: Places) -> None:
    with pytest.raises(MeasurementFailed, match=r"\(publish\) failed: bus\.errors\."):
        measure(places, NAMED["publish_one"], OURS, Work(events=100, deliveries=0, shape=Shape(payload=2_000_000)))
