import re

from tests.bench.contenders import CONTENDERS
from tests.bench.report import headlines, number, page, quoted, table, with_spread
from tests.bench.results import Measurement, Results, Spread

README = "# Title\n\n<!-- begin of make bench -->\nold\n<!-- end of make bench -->\n\nrest\n"


def results(*, quick: bool = False) -> Results:
    figures = {"p50_ms": 1.25, "p99_ms": 2.5, "rate": 1_000.0, "cpu_us": 10.0}
    measurements = [
        *(Measurement("consume", "ours-redis", 0, at, {"rate": rate}) for at, rate in enumerate((60e3, 50e3, 70e3))),
        Measurement("consume", "bare-redis", 0, 0, {"rate": 100e3}),
        Measurement("consume", "repid", 0, 0, {"rate": 7_000.0}),
        Measurement("consume", "huey", 0, 0, {"rate": 2_000.0}),
        Measurement("consume", "rq", 0, 0, {}, "it ended: no module named rq"),
        Measurement("consume", "ours-postgres", 0, 0, {"rate": 30e3}),
        Measurement("consume", "bare-postgres", 0, 0, {"rate": 40e3}),
        Measurement("consume", "pgqueuer", 0, 0, {"rate": 10e3}),
        *(Measurement("latency", f"ours-{each}", 200, 0, figures) for each in ("redis", "postgres", "sqlite")),
        Measurement("backlog", "ours-redis", 1_000, 0, {"rate": 60e3}),
        Measurement("backlog", "ours-redis", 10_000, 0, {"rate": 45e3}),
    ]
    machine = {"system": "Linux 6", "processor": "A processor", "cores": "2", "memory": "8 GiB"}
    return Results("2026-01-02", quick, machine, {"Python": "3.11.7", "Redis": "8.2.3"}, measurements)


def row(text: str, title: str) -> list[str]:
    [line] = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", text, flags=re.MULTILINE)[:1]
    return [cell.strip() for cell in line.split("|")]


def test_numbers_have_three_significant_digits() -> None:
    assert [number(each) for each in (None, 0.0, 0.01234, 1.0, 12.34, 123.4, 1234.0, 71_234.0)] == [
        *("-", "0", "0.0123", "1.00", "12.3", "123", "1,230", "71,200"),
    ]


def test_spread_is_shown_only_if_there_is_one() -> None:
    assert with_spread(Spread(2.0, 1.0, 3.0)) == "2.00 (1.00 to 3.00)"
    assert with_spread(Spread(2.0, 2.0, 2.0)) == "2.00"
    assert with_spread(None) == "-"


def test_columns_of_figures_are_aligned_to_the_right() -> None:
    assert table(["", "rate", "note"], [["a", "1", "x"], ["b", "-", "y"]]).splitlines()[1] == "| --- | ---: | --- |"


def test_row_has_the_median_its_spread_and_the_share_of_the_bare_loop() -> None:
    assert row(page(results()), "Beneath on Redis")[:2] == ["60,000 (50,000 to 70,000)", "60%"]


def test_rows_are_ours_then_bare_loops_then_peers_by_rate() -> None:
    section = page(results()).partition("## Handle a backlog")[2].partition("\n## ")[0]
    titles = re.findall(r"^\| (\w[^|]*) \|", section, flags=re.MULTILINE)
    assert titles == [
        *("Beneath on Redis", "Beneath on PostgreSQL", "bare redis-py", "bare asyncpg", "pgqueuer", "repid", "huey"),
    ]


def test_what_is_not_comparable_stands_beside_the_row() -> None:
    assert row(page(results()), "huey")[-1] == CONTENDERS["huey"].differs
    assert CONTENDERS["huey"].differs.startswith("at most once")


def test_growth_is_compared_with_its_first_value() -> None:
    section = page(results()).partition("## Growth of the backlog")[2]
    assert "| Beneath on Redis | 1,000 | 60,000 | 100% |" in section
    assert "| Beneath on Redis | 10,000 | 45,000 | 75% |" in section


def test_failures_and_settings_are_listed() -> None:
    text = page(results())
    assert "| consume | RQ | it ended: no module named rq |" in text
    assert row(text, "RQ")[0] == "redis"


def test_page_names_machine_versions_and_a_quick_run() -> None:
    text = page(results())
    assert "System: Linux 6; processor: A processor; cores: 2; memory: 8 GiB." in text
    assert "Python 3.11.7, Redis 8.2.3" in text
    assert "quick run: one round" not in text
    assert "quick run: one round" in page(results(quick=True))


def test_headlines_have_ratios_and_conditions() -> None:
    redis, postgres, latency, conditions = [
        " ".join(each.split()) for each in re.split(r"\n- |\n\n", headlines(results()).removeprefix("- ").strip())
    ]
    assert redis.startswith("Redis: 60,000 events handled a second, 60% of a bare client loop; repid")
    assert postgres.endswith("10,000")
    assert latency.endswith("Redis 1.25 and 2.50 ms, PostgreSQL 1.25 and 2.50 ms, SQLite 1.25 and 2.50 ms")
    assert "2 cores of A processor" in conditions
    assert max(map(len, headlines(results()).splitlines())) <= 120


def test_readme_gets_the_headlines_where_it_quotes_some() -> None:
    text = quoted(README, results())
    assert text.startswith("# Title\n\n<!-- begin of make bench -->\n- Redis: 60,000")
    assert text.endswith("<!-- end of make bench -->\n\nrest\n")
    assert "old" not in text
    assert quoted("# Another\n", results()) == "# Another\n"


def test_readme_stays_as_it_is_without_the_figures() -> None:
    partial = results()
    del partial.measurements[0:3]
    assert quoted(README, partial) == README
