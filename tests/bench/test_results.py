from pathlib import Path

from tests.bench.results import Measurement, Results, Spread, interleaved, load, machine, save, spread


def results(*rates: float) -> Results:
    measurements = [Measurement("consume", "ours-redis", 0, at, {"rate": rate}) for at, rate in enumerate(rates)]
    failed = Measurement("consume", "repid", 0, 0, {}, "it ended")
    return Results("2026-01-02", False, {"cores": "2"}, {"Python": "3.11.7"}, [*measurements, failed])


def test_spread_has_the_median_and_both_ends() -> None:
    assert spread([3.0, 1.0, 100.0]) == Spread(3.0, 1.0, 100.0)
    assert spread([2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([]) is None


def test_median_is_taken_over_the_rounds_of_one_value() -> None:
    found = results(10.0, 30.0, 20.0)
    found.measurements.append(Measurement("consume", "ours-redis", 7, 0, {"rate": 999.0}))
    assert found.median("consume", "ours-redis", 0, "rate") == 20.0
    assert found.median("consume", "ours-redis", 0, "cpu_us") is None
    assert found.values("consume") == [0, 7]


def test_failed_measurement_has_no_figures() -> None:
    found = results(10.0)
    assert found.spread("consume", "repid", 0, "rate") is None
    assert [each.error for each in found.failures()] == ["it ended"]


def test_saved_results_are_loaded_with_four_digits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    save(results(12345.678), path)
    assert load(path) == results(12350.0)
    save(load(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_digest_depends_on_the_measurements_of_its_scenario_alone() -> None:
    found = results(10.0)
    before = found.digest("consume")
    found.measurements.append(Measurement("latency", "ours-redis", 0, 0, {"p50_ms": 1.0}))
    assert found.digest("consume") == before
    assert results(11.0).digest("consume") != before


def test_each_round_begins_with_another_contender() -> None:
    assert interleaved(["a", "b", "c"], 2) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]
    assert interleaved([], 3) == []


def test_machine_is_described_without_its_name() -> None:
    assert set(machine()) == {"system", "processor", "cores", "memory"}
