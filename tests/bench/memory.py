"""`python -m tests.bench.memory`: measures the memory of a worker process beyond its imports, with any backlog.

It is measured in a new process that handles events, or waits, for some seconds.
"""

import argparse
import asyncio
import logging
import resource
import subprocess
import sys
from pathlib import Path

import structlog

from bus import Bus
from infra.clock import SystemClock
from infra.mq.drivers.redis import RedisQueue
from tests.bench.measure import Signed, working
from tests.servers import KINDS, new_server

GOAL = 30.0
"""The goal, in MB above the imports."""

BATCH = 500


def resident() -> float:
    """Return how many MB this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def work(url: str, seconds: float) -> None:
    """Run the worker, and print its memory."""
    imports = resident()
    handled = 0
    mq = RedisQueue(url, clock=SystemClock())
    bus = Bus(mq, clock=SystemClock())

    async def on_signed(event: Signed) -> None:
        nonlocal handled
        handled += 1

    bus.add_async_listener(on_signed, name="signed")
    await mq.open()
    await bus.start()
    async with working(bus):
        await asyncio.sleep(seconds)
    await bus.close()
    await mq.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{imports:.1f} {peak - imports:.1f} {handled}")  # noqa: T201 - the parent reads it


async def fill(url: str, backlog: int) -> None:
    """Publish a backlog of `backlog` events."""

    async def on_signed(event: Signed) -> None: ...

    mq = RedisQueue(url, clock=SystemClock())
    bus = Bus(mq, clock=SystemClock())
    bus.add_async_listener(on_signed, name="signed")
    await mq.open()
    await bus.start()
    for at in range(0, backlog, BATCH):
        await bus.publish_many([Signed(n=n) for n in range(at, at + BATCH)])
    await bus.close()
    await mq.close()


def measure(kind: str, backlog: int, seconds: float) -> None:
    """Measure a worker on a new server, and print the figures."""
    server = new_server(kind)
    try:
        asyncio.run(fill(server.url, backlog))
        command = [sys.executable, "-m", "tests.bench.memory", "--work", server.url, "--seconds", str(seconds)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - this module
    finally:
        server.kill()
    imports, above, handled = said.split()
    what = f"worker on {kind}, backlog of {backlog:,}"
    print(f"{what:<44}  {imports:>6} MB imports  {above:>6} MB above  (goal <= {GOAL:g})  {int(handled):,} handled")  # noqa: T201


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", default="valkey", choices=list(KINDS))
    parser.add_argument("-n", "--count", type=int, default=1_000_000, help="the larger backlog")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each worker works")
    parser.add_argument("--work", metavar="URL", help="be the worker")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.work:
        asyncio.run(work(arguments.work, arguments.seconds))
        return
    for backlog in (0, arguments.count):
        measure(arguments.kind, backlog, arguments.seconds)


if __name__ == "__main__":
    main()
