"""`make bench-gate`: fails if a driver is far slower than the loop of its bare client, measured alternately in one run.

A busy machine does not fail it: the floors are about half of the real ratios, only the best rounds of both sides count,
and rounds are added until a ratio reaches its floor.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog

from tests.bench import measure
from tests.bench.drivers import BENCHES
from tests.bench.measure import Bench
from tests.bench.places import REDIS_KINDS
from tests.servers import KINDS

MOST_ROUNDS = 8
"""Rounds after which a ratio below its floor fails."""

COUNT = 5_000

Pair = tuple[float, float]
"""The seconds of a driver and of the bare loop for the same work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least share of the bare loop's rate that a driver must reach."""

    driver: str
    what: str
    share: float
    count: int = COUNT


FLOORS = (
    Floor(driver="redis", what="handled", share=0.30),
    Floor(driver="redis", what="publish_many", share=0.25),
    Floor(driver="redis", what="publish", share=0.35, count=500),
    Floor(driver="postgres", what="handled", share=0.30),
    Floor(driver="postgres", what="publish_many", share=0.25),
    Floor(driver="postgres", what="publish", share=0.35, count=300),
    Floor(driver="sqlite", what="handled", share=0.20),
    Floor(driver="sqlite", what="publish_many", share=0.20),
    Floor(driver="sqlite", what="publish", share=0.12, count=300),
)


def best_share(rounds: Iterator[Pair], floor: float) -> float:
    """Return the share of the best bare round that the best round reaches, at the first round at which it suffices."""
    best = best_bare = float("inf")
    share = 0.0
    for seconds, bare in rounds:
        best, best_bare = min(best, seconds), min(best_bare, bare)
        share = best_bare / best
        if share >= floor:
            break
    return share


def rounds(bench: Bench, floor: Floor) -> Iterator[Pair]:
    """Measure both sides alternately."""
    sides: dict[str, tuple[Callable[[Bench, int], Awaitable[float]], Callable[[int], Awaitable[float | None]]]] = {
        "handled": (measure.handled, bench.bare_consume),
        "publish_many": (measure.published_many, bench.bare_publish_many),
        "publish": (measure.published, bench.bare_publish),
    }
    ours, bare = sides[floor.what]

    async def both() -> Pair:
        expected = await bare(floor.count)
        if expected is None:
            raise ValueError(f"{bench.name} has no bare loop")
        return await ours(bench, floor.count), expected

    for _ in range(MOST_ROUNDS):
        yield asyncio.run(both())


def opened(driver: str) -> Bench:
    """Return the bench of a driver, on the kind of Redis server that is installed."""
    return BENCHES[next(kind for kind in REDIS_KINDS if KINDS[kind]()) if driver == "redis" else driver]()


def main() -> None:
    """Compare each driver with its floors, and exit with 1 if one is missed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    benches = {name: opened(name) for name in sorted({floor.driver for floor in FLOORS})}
    began, missed = time.monotonic(), 0
    for floor in FLOORS:
        share = best_share(rounds(benches[floor.driver], floor), floor.share)
        verdict = "ok" if share >= floor.share else "TOO SLOW"
        missed += share < floor.share
        ratio = f"{share:>5.0%} of the bare loop, at least {floor.share:.0%}"
        print(f"{floor.driver:<9} {floor.what:<13} {ratio}: {verdict}")  # noqa: T201 - its output is what a gate is for
    print(f"bench-gate: {len(FLOORS) - missed} passed, {missed} failed, in {time.monotonic() - began:.0f} s")  # noqa: T201
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
