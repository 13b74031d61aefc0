"""The processes of a soak: every process that ends is replaced, and an unexpected end is a violation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.breakable_proxy import BreakableProxy
from tests.e2e.processes import until
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess

LONGEST_STOP = 60.0
"""Seconds within which a worker must shut down, even while its server is unavailable."""

LONGEST_REST = 120.0
"""Seconds without progress after which deliveries are stranded, once the last fault is over."""


@dataclass(eq=False)
class Member:
    """A role in the pool, and the process that currently fills it."""

    role: str
    listeners: tuple[str, ...]
    changes: dict[str, Any]
    """Changes of its plan."""

    proxy: BreakableProxy | None
    process: ForkedProcess
    number: int = 0
    """Number of earlier processes in this role."""

    stopping_since: float | None = None

    def is_running(self, fleet: Fleet) -> bool:
        """Return whether its process has begun and was not asked to shut down."""
        return self.process.running and self.stopping_since is None and has_begun(fleet, self.process)


def has_begun(fleet: Fleet, process: ForkedProcess) -> bool:
    """Return whether the process has written to the journal."""
    return process.number in fleet.journal.processes()


class ProcessPool:
    """All processes of a soak."""

    def __init__(self, fleet: Fleet, proxies: Callable[[], BreakableProxy | None]) -> None:
        self.fleet = fleet
        self._proxies = proxies
        self._entered: list[BreakableProxy] = []
        self.workers: list[Member] = []
        self.publishers: list[Member] = []
        self.errors: list[str] = []
        self.failed_starts = 0

    def add(self, role: str, listeners: tuple[str, ...] = (), **changes: Any) -> None:  # noqa: ANN401 - a plan's
        """Start a process: `role` is its program, `changes` are the changes of its plan."""
        proxy = self._proxies()
        if proxy is not None:
            self._entered.append(proxy.__enter__())
        member = Member(role, listeners, changes, proxy, self._start(role, listeners, changes, proxy, 0))
        (self.workers if role == "worker" else self.publishers).append(member)

    def close(self) -> None:
        """Close the proxies."""
        for proxy in self._entered:
            proxy.__exit__(None, None, None)

    def kill(self, member: Member) -> None:
        """Kill a process and replace it."""
        self.fleet.kill(member.process)
        self._replace(member)

    def stop(self, member: Member) -> None:
        """Request a process's shutdown; it is replaced once it has ended."""
        member.process.terminate()
        member.stopping_since = time.monotonic()

    def interrupted(self, member: Member) -> None:
        """Record that the results of the process so far may not have been accepted."""
        self.fleet.cut_off(member.process)

    def supervise(self) -> None:
        """Replace ended processes; record unexpected ends and overdue shutdowns as violations."""
        for member in (*self.workers, *self.publishers):
            process, since = member.process, member.stopping_since
            if process.running:
                if since is not None and time.monotonic() - since > LONGEST_STOP:
                    self.errors.append(f"{process} does not stop: {process.stderr[-2000:]}")
                    self.kill(member)
                continue
            code = process.wait()
            if since is None and not has_begun(self.fleet, process):
                self.failed_starts += 1  # its server was unavailable
            elif since is None or code != 0:
                self.errors.append(f"{process} ended with {code}: {process.stderr[-2000:]}")
                self.fleet.cut_off(process)
            self._replace(member)

    def shut_down(self) -> None:
        """Wait until all processes have begun, end the publishers, wait for an empty queue, and stop the workers."""

        def all_have_begun() -> bool:
            self.supervise()
            return all(has_begun(self.fleet, it.process) for it in (*self.workers, *self.publishers))

        until(all_have_begun, "every process has begun", timeout=LONGEST_STOP + LONGEST_REST)
        self.fleet.gate.touch()
        for member in self.publishers:
            if member.process.wait() != 0:
                self.errors.append(f"{member.process} ended badly: {member.process.stderr[-2000:]}")
        try:
            self.fleet.wait_empty(LONGEST_REST)
        except AssertionError as error:
            self.errors.append(f"stranded: {error}: {self.fleet.stats()}")
        for member in self.workers:
            if member.stopping_since is None:
                member.process.terminate()
        for member in self.workers:
            if member.process.wait() != 0:
                self.errors.append(f"{member.process} ended badly: {member.process.stderr[-2000:]}")

    def _replace(self, member: Member) -> None:
        member.number += 1
        member.stopping_since = None
        member.process = self._start(member.role, member.listeners, member.changes, member.proxy, member.number)

    def _start(
        self, role: str, listeners: tuple[str, ...], changes: dict[str, Any], proxy: BreakableProxy | None, number: int
    ) -> ForkedProcess:
        arguments = dict(changes.get("arguments", {}))
        if keys := arguments.get("keys"):
            arguments["keys"] = [f"{key}.{number}" for key in keys]  # the last event of a killed publisher is unknown
        self.fleet.detour(proxy)
        try:
            return self.fleet.start(*listeners, program=role, **{**changes, "arguments": arguments})
        finally:
            self.fleet.detour(None)
