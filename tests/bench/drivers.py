"""`make bench-drivers`: compares every driver with a loop of its bare client, measured alternately in one run.

Absolute figures depend on the machine; compare the ratios.
"""

import argparse
import asyncio
import logging
import resource
import statistics
import sys
from collections.abc import Awaitable, Callable

import structlog

from tests.bench import measure
from tests.bench.embedded import MemoryBench, SqliteBench, settle_down
from tests.bench.measure import Bench
from tests.bench.postgres import PostgresBench
from tests.bench.redis import RedisBench

BENCHES: dict[str, Callable[[], Bench]] = {
    "memory": MemoryBench,
    "sqlite": SqliteBench,
    "postgres": PostgresBench,
    "valkey": lambda: RedisBench("valkey"),
    "redis8": lambda: RedisBench("redis8"),
    "redis7": lambda: RedisBench("redis7"),
}


def report(what: str, rate: float | None, bare: float | None, goal: str) -> None:
    """Print one line: the rate, the bare loop's rate, their ratio, and the goal."""
    columns = [f"{what:<44}", f"{rate:>12,.0f}/s" if rate is not None else " " * 14]
    columns.append(f"{bare:>12,.0f}/s" if bare is not None else f"{'-':>14}")
    columns.append(f"{rate / bare:>7.0%}" if rate is not None and bare else f"{'-':>7}")
    print("  ".join(columns), f"  {goal}")  # noqa: T201 - its output is what a bench is for


async def compare(
    what: str,
    goal: str,
    count: int,
    rounds: int,
    ours: Callable[[int], Awaitable[float]],
    bare: Callable[[int], Awaitable[float | None]],
) -> float:
    """Measure both alternately, `rounds` times, and report the best of each, because noise only adds time."""
    best, best_bare = float("inf"), None
    for _ in range(rounds):
        seconds = await bare(count)
        if seconds is not None:
            best_bare = min(seconds, best_bare or float("inf"))
        best = min(best, await ours(count))
        await settle_down()
    report(what, count / best, count / best_bare if best_bare else None, goal)
    return count / best


async def compare_latencies(bench: Bench, rounds: int) -> None:
    """Measure both alternately, `rounds` times, and print the median of each figure."""
    ours: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    for _ in range(rounds):
        if (figures := await bench.bare_latencies(600, 200)) is not None:
            bare.append(figures)
        ours.append(await measure.latencies(bench, 600, 200))
    for name, measured in (("ours", ours), ("bare", bare)):
        if measured:
            median, slow = (statistics.median(it[nth] for it in measured) * 1e3 for nth in range(2))
            print(f"latency at 200/s, {name}: p50 {median:.2f} ms, p99 {slow:.2f} ms")  # noqa: T201


async def nothing(_: int) -> None:
    """Do nothing: a placeholder where there is no bare loop."""


async def run(bench: Bench, count: int, rounds: int) -> None:
    """Measure one driver."""
    print(f"\n{bench.name}\n{'':<44}  {'ours':>14}  {'bare':>14}  {'ratio':>7}   goal")  # noqa: T201
    unordered = await compare(
        "handled, one listener",
        ">= 50 % (SQLite 40 %)",
        count,
        rounds,
        lambda n: measure.handled(bench, n),
        bench.bare_consume,
    )
    keys = max(1, count // 20)
    seconds = min([await measure.handled_in_order(bench, keys, 20) for _ in range(rounds)])
    report(f"ordered, {keys} keys with 20 each / unordered", keys * 20 / seconds, unordered, ">= 40 %")
    await compare(
        "publish_many(100)",
        ">= 50 %",
        count,
        rounds,
        lambda n: measure.published_many(bench, n),
        bench.bare_publish_many,
    )
    few = max(100, count // 20)
    await compare(
        "publish, one by one", ">= 70 %", few, rounds, lambda n: measure.published(bench, n), bench.bare_publish
    )
    await compare(
        "publish, 100 tasks",
        ">= 70 %",
        count,
        rounds,
        lambda n: measure.published_together(bench, n),
        bench.bare_publish_together,
    )
    publish, bare = await measure.sync_overhead(bench, 5_000)
    print(f"publish to a sync listener only: {publish * 1e6:.2f} us, bare await {bare * 1e6:.2f} us")  # noqa: T201
    await compare_latencies(bench, rounds)
    idle = await measure.idle_cpu(bench, 3.0)
    print(f"idle worker: {idle:.2%} of a core")  # noqa: T201


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [name for name in BENCHES if name != "redis7"]
    parser.add_argument("drivers", nargs="*", default=usual, help=f"which of: {', '.join(BENCHES)}")
    parser.add_argument("-n", "--count", type=int, default=20_000, help="events per measurement")
    parser.add_argument("-r", "--rounds", type=int, default=3, help="how often each pair is measured")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if unknown := set(arguments.drivers) - set(BENCHES):
        sys.exit(f"unknown driver {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    for name in arguments.drivers:
        asyncio.run(run(BENCHES[name](), arguments.count, arguments.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {peak:.0f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
