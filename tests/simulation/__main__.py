"""The command `python -m tests.simulation FROM:TO`, which runs seeds; with one seed and `-v` it prints the trace."""

import argparse
import gc
import os
import sys
import time

from tests.simulation.database import Files
from tests.simulation.sealing import HASH_SEED, seal

CLOCK = time.perf_counter


def main() -> int:
    """Run seeds; return 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seeds", help="one seed, or FROM:TO")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print the trace of every seed that failed, or of one"
    )
    parser.add_argument("--digests", action="store_true", help="print the digest of every trace")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(  # noqa: S606 - the same program
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
    first, _, last = arguments.seeds.partition(":")
    seeds = range(int(first), int(last or int(first) + 1))
    files = Files()
    seal()
    from tests.simulation.simulation import Simulation

    gc.collect()
    gc.freeze()  # loaded modules stay, so that later collections skip them
    failed = events = runs = 0
    started = CLOCK()
    try:
        for seed in seeds:
            result = Simulation(seed, files.copy() if seed % 2 else None).run()
            gc.collect()  # before the next simulation, not inside it
            failed += bool(result.broken)
            events += result.events
            runs += result.runs
            if result.broken:
                say(f"seed {seed} FAILED; replay it: python -m tests.simulation {seed} -v")
                say("\n".join(result.broken[:20]))
            if arguments.digests:
                say(f"seed {seed} digest {result.digest} steps {result.steps} events {result.events}")
            if arguments.verbose and (result.broken or len(seeds) == 1):
                say("\n".join(result.trace))
    finally:
        files.close()
    if not events and len(seeds) > 1:
        failed += 1
        say("nothing was ever accepted")
    took = CLOCK() - started
    say(f"{len(seeds)} seeds, {failed} failed, {events} events, {runs} runs, {len(seeds) / took:.1f} seeds/s")
    return 1 if failed else 0


def say(line: str) -> None:
    """Print a line."""
    print(line, flush=True)  # noqa: T201 - the output of a command


if __name__ == "__main__":
    sys.exit(main())
