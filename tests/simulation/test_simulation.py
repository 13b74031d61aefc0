"""Simulations of several processes with random faults, from many seeds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.sealing import HASH_SEED

ROOT = Path(__file__).parents[2]
FIRST = int(os.environ.get("BENEATH_TEST_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("BENEATH_TEST_SEEDS", "30"))
CHUNK = 10
"""Number of seeds per Python process."""

pytestmark = pytest.mark.timeout(600)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run simulations in a new Python process, as they make their process deterministic permanently."""
    return subprocess.run(  # noqa: S603 - a module of this project
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": HASH_SEED},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, CHUNK))
def test_every_guarantee_holds_under_random_failures(first: int) -> None:
    done = simulate(f"{first}:{min(first + CHUNK, FIRST + SEEDS)}")

    assert done.returncode == 0, done.stdout + done.stderr


def digests(seeds: str) -> list[str]:
    return [line.split(" digest ")[1] for line in simulate(seeds, "--digests").stdout.splitlines() if "digest" in line]


def test_same_seed_gives_the_same_trace_and_different_seeds_differ() -> None:
    alone = digests("3")
    after_others = digests("1:4")

    assert after_others[2:] == alone
    assert len(set(after_others)) == 3
