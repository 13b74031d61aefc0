"""Run the soak: workers and publishers under load with all faults at once, on the stack of `BENEATH_TEST_STACK`."""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from tests import postgres_servers, servers
from tests.e2e.processes import Processes, let_pass
from tests.postgres_servers import PostgresServer
from tests.servers import DURABLE, RedisServer
from tests.soak.faults import FAULTS, Faults, proxy_to
from tests.soak.pool import ProcessPool
from tests.soak.report import LISTENERS, summary, violations
from tests.stacks import Stack, chosen
from tests.torture.fleet import QUICK, Fleet
from tests.torture.forked import ForkedProcesses
from tests.torture.rows import EFFECT, LEDGER
from tests.torture.stepping import step
from tests.world import migrated_file

LEASE = 3.0
WORKERS = 3
LONGEST_PEACE = 2.0
"""Seconds between the beginnings of two faults, at most."""

SHOWN = 50
"""How many violations are printed."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the soak, print its counts and violations, and return 1 if there are violations."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="minutes for which faults are injected")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the faults")
    parser.add_argument("--pause", type=float, default=0.4, help="maximum seconds between two transactions of a key")
    parser.add_argument("--without", action="append", default=[], choices=FAULTS, help="a fault to leave out")
    arguments = parser.parse_args(words)
    stack = chosen()
    print(f"soak of {stack}: {arguments.minutes:g} minutes, seed {arguments.seed}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="beneath-soak-") as name:
        folder = Path(name)
        with _servers(stack) as own, fleet_on(stack, folder, own) as fleet:
            return _soak(fleet, own, folder / "clock", arguments)


def end_on_signals() -> None:
    """On SIGINT or SIGTERM end all processes and servers of the soak, then exit with 128 and the signal's number.

    The signal raises `SystemExit`, which leaves the contexts that own them. Further signals are ignored meanwhile.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each in signals:
        signal.signal(each, end)


@contextmanager
def _servers(stack: Stack) -> Iterator[list[RedisServer | PostgresServer]]:
    """Run the stack's servers for the block, with durable settings; the server of the queue comes first."""
    own: list[RedisServer | PostgresServer] = []
    if stack.broker is not None:
        own.append(servers.new_server(stack.broker, *DURABLE))
    if stack.database == "postgres":
        own.append(postgres_servers.new_server())
    try:
        yield own
    finally:
        for server in own:
            server.kill()


@contextmanager
def fleet_on(stack: Stack, folder: Path, own: list[RedisServer | PostgresServer]) -> Iterator[Fleet]:
    """Create a fleet on these servers for the block."""
    broker = next((it for it in own if isinstance(it, RedisServer)), None)
    postgres = next((it for it in own if isinstance(it, PostgresServer)), None)
    template = asyncio.run(migrated_file(folder / "template.db"))
    place = stack.place(folder, template=template, broker=broker, postgres=postgres)
    with place as where, Processes() as processes, ForkedProcesses() as forked:
        fleet = Fleet(processes, forked, folder, where)
        try:
            yield fleet
        finally:
            fleet.close()


def _soak(fleet: Fleet, own: list[RedisServer | PostgresServer], clock: Path, arguments: argparse.Namespace) -> int:
    random = Random(arguments.seed)
    step(clock, 0.0)
    for table in (LEDGER, EFFECT):
        fleet.rows.create(table)
    fleet.rows.disconnect()
    pool = ProcessPool(fleet, lambda: proxy_to(own, random.randrange(1000)))
    _add_processes(pool, clock, arguments.pause)
    print(f"{len(pool.workers)} workers and {len(pool.publishers)} publishers started", flush=True)  # noqa: T201
    kinds = [each for each in FAULTS if each not in arguments.without]
    faults = Faults(pool, random, own, clock, LEASE, kinds)
    started = time.monotonic()
    try:
        while time.monotonic() - started < arguments.minutes * 60 and not pool.errors:
            let_pass(random.uniform(0, LONGEST_PEACE))
            faults.end_those_over()
            pool.supervise()
            faults.begin_one()
        faults.end_all()
        fleet.rows.disconnect()
        pool.shut_down()
        broken = [*pool.errors, *violations(fleet)]
    finally:
        pool.close()
    print(f"{faults.done.total()} faults {dict(faults.done)}, {pool.failed_starts} failed starts")  # noqa: T201
    print(f"{summary(fleet)}, {len(broken)} violations in {time.monotonic() - started:.0f} s")  # noqa: T201
    for each in broken[:SHOWN]:
        print(each)  # noqa: T201
    return 1 if broken else 0


def _add_processes(pool: ProcessPool, clock: Path, pause: float) -> None:
    common: dict[str, Any] = {"queue": {"lease": LEASE}, "options": dict(QUICK), "clock": str(clock)}
    for _ in range(WORKERS):
        pool.add("worker", LISTENERS, **common)
    for member in pool.workers:
        pool.fleet.wait_ready(member.process)  # events published before the subscription are not delivered
    for half in ("a", "b"):
        keys = [f"{half}{number}" for number in range(4)]
        pool.add("bookkeeper", work=False, arguments={"keys": keys, "pause": pause}, **common)
        pool.add("scheduler", work=False, arguments={"keys": keys, "pause": pause}, **common)


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
