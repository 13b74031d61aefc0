"""The faults of a soak: of processes, connections, servers and clocks. Each fault ends after some time."""

import heapq
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.breakable_proxy import BreakableProxy
from tests.postgres_servers import PostgresServer
from tests.servers import RedisServer
from tests.soak.pool import Member, ProcessPool
from tests.torture.stepping import step

FAULTS = ("kill", "stop", "pause", "clock", "connection", "network", "server")
NETWORKED = frozenset({"connection", "network", "server"})
"""Faults that need a server."""

HOUR = 3600.0
BROKEN = ("mute", "cut", "half")
"""Faults of one connection, by which no worker loses its lease."""

SILENT = ("black out", "hold up", "cut off")


class Faults:
    """Begins faults, several at a time, and ends those that are due."""

    def __init__(
        self,
        pool: ProcessPool,
        random: Random,
        servers: list[RedisServer | PostgresServer],
        clock: Path,
        lease: float,
        kinds: Sequence[str] = FAULTS,
    ) -> None:
        self._pool = pool
        self._random = random
        self._servers = servers
        self._clock = clock
        self._lease = lease
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._disturbed: set[Member] = set()
        self.done: Counter[str] = Counter()
        every: dict[str, Callable[[], str | None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "pause": self._pause,
            "clock": self._step,
            "connection": self._break,
            "network": self._silence,
            "server": self._restart,
        }
        self._kinds = [every[kind] for kind in kinds if servers or kind not in NETWORKED]

    def begin_one(self) -> None:
        """Begin one random fault."""
        if (name := self._random.choice(self._kinds)()) is not None:
            self.done[name] += 1

    def end_those_over(self) -> None:
        """End the faults that are due."""
        while self._ends and self._ends[0][0] <= time.monotonic():
            heapq.heappop(self._ends)[2]()

    def end_all(self) -> None:
        """End all faults, and reset the clocks."""
        while self._ends:
            heapq.heappop(self._ends)[2]()
        step(self._clock, 0.0)

    def _later(self, seconds: float, end: Callable[[], None]) -> None:
        heapq.heappush(self._ends, (time.monotonic() + seconds, next(self._order), end))

    def _some(self, members: list[Member]) -> Member | None:
        healthy = [each for each in members if each not in self._disturbed and each.is_running(self._pool.fleet)]
        return self._random.choice(healthy) if healthy else None

    def _kill(self) -> str | None:
        member = self._some([*self._pool.workers, *self._pool.publishers])
        if member is None:
            return None
        self._pool.kill(member)
        return f"kill of a {member.role}"

    def _stop(self) -> str | None:
        member = self._some(self._pool.workers)
        if member is None:
            return None
        self._pool.stop(member)
        return "graceful stop"

    def _pause(self) -> str | None:
        member = self._some(self._pool.workers)
        if member is None:
            return None
        self._pool.fleet.pause(member.process)
        self._disturbed.add(member)

        def resume() -> None:
            member.process.resume()
            self._pool.interrupted(member)
            self._disturbed.discard(member)

        self._later(self._random.uniform(0.2, 2 * self._lease), resume)
        return "pause"

    def _step(self) -> str:
        step(self._clock, self._random.choice([-HOUR, -1.0, 0.0, 1.0, HOUR]))
        return "clock step"

    def _break(self) -> str | None:
        member = self._some([*self._pool.workers, *self._pool.publishers])
        proxy = member.proxy if member else None
        if proxy is None:
            return None
        fault = self._random.choice(BROKEN)
        proxy.fail(fault)
        return f"connection: {fault}"

    def _silence(self) -> str | None:
        member = self._some(self._pool.workers)
        proxy = member.proxy if member else None
        if member is None or proxy is None:
            return None
        how = self._random.choice(SILENT)
        {"black out": proxy.black_out, "hold up": proxy.hold_up, "cut off": proxy.close_off}[how]()
        self._disturbed.add(member)

        def open_up() -> None:
            proxy.open_up()
            self._pool.interrupted(member)
            self._disturbed.discard(member)

        self._later(self._random.uniform(0.2, 3 * self._lease), open_up)
        return f"network: {how}"

    def _restart(self) -> str | None:
        server = self._random.choice(self._servers)
        kind = "PostgreSQL" if isinstance(server, PostgresServer) else "broker"
        if isinstance(server, PostgresServer):
            server.stop(self._random.choice([signal.SIGINT, signal.SIGQUIT]))
        else:
            server.kill()
        self._pool.fleet.rows.disconnect()
        time.sleep(self._random.choice([0.0, 0.5, 1.5 * self._lease]))
        server.start()
        for member in self._pool.workers:
            self._pool.interrupted(member)
        return f"{kind} restart"


def proxy_to(servers: list[RedisServer | PostgresServer], seed: int) -> BreakableProxy | None:
    """Return one process's proxy to the server of the queue, or None without a server."""
    return BreakableProxy(servers[0].port, seed=seed) if servers else None
