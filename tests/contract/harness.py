"""The interface between a driver and the contract tests: an empty store, its queues, crashes and restarts.

To test another driver, write a module with `open_harness(folder, clock)` and add it to `DRIVERS`.
"""

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import pytest

from infra.clock import FakeClock
from infra.mq import Consumer, Features, MessageQueue


class Harness(Protocol):
    """One empty store, and the operations of tests on it. All its queues use `clock`."""

    @property
    def clock(self) -> FakeClock:
        """The clock of every queue of this harness."""
        ...

    @property
    def dedupe_window(self) -> float:
        """The dedupe window of the queues in seconds."""
        ...

    @property
    def lease(self) -> float | None:
        """Seconds without `renew` after which a worker is considered dead; None if only its process's end counts."""
        ...

    async def queue(self) -> MessageQueue:
        """Return an open queue on the store.

        Each call simulates another process and returns another instance; without `multi_process` always the same one.
        The harness closes all queues at its end; a test may close one earlier.
        """
        ...

    async def reopen(self) -> MessageQueue:
        """End all processes so far without closing their queues; return a queue of a new process. Needs `durable`."""
        ...

    async def crash(self, consumer: Consumer) -> None:
        """Let the worker crash; on return other workers can recover its claims."""
        ...

    def transaction(self, queue: MessageQueue) -> AbstractAsyncContextManager[object]:
        """Open an ambient transaction of the database that `queue` is on; an exception rolls back. Needs
        `transactional`.
        """
        ...


Opener = Callable[[Path, FakeClock], AbstractAsyncContextManager[Harness]]


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver under test: the module of its harness, and its features."""

    module: str
    """The module's name, with the opener's name after a colon if it is not `open_harness`."""

    features: Features

    def open(self, folder: Path, clock: FakeClock) -> AbstractAsyncContextManager[Harness]:
        """Open a harness on a new, empty store, which may keep its files in `folder`."""
        module, _, name = self.module.partition(":")
        opener = cast("Opener", getattr(importlib.import_module(module), name or "open_harness"))
        return opener(folder, clock)


MAX_BODY = 64 * 1024 * 1024
"""The limit for bodies in bytes that all drivers have in these tests, so that too large bodies stay small."""

_SHARED = Features(durable=True, multi_process=True, transactional=False)


DRIVERS = {
    "memory": Driver(
        "tests.contract.memory_harness",
        Features(durable=False, multi_process=False, transactional=False),
    ),
    "sqlite": Driver(
        "tests.contract.sqlite_harness",
        Features(durable=True, multi_process=True, transactional=True),
    ),
    "postgres": Driver(
        "tests.contract.postgres_harness",
        Features(durable=True, multi_process=True, transactional=True),
    ),
    "redis7": Driver("tests.contract.redis_harness:on_redis7", _SHARED),
    "redis8": Driver("tests.contract.redis_harness:on_redis8", _SHARED),
    "valkey": Driver("tests.contract.redis_harness:on_valkey", _SHARED),
}

TWINS = frozenset({"redis7", "redis8"})
"""Drivers that differ from another one only in the server's version; `make test-all` runs them."""


def chosen_drivers() -> list[str]:
    """Return the drivers to test: those that BENEATH_TEST_DRIVERS names, `all`, or by default all but the twins."""
    wanted = os.environ.get("BENEATH_TEST_DRIVERS", "")
    if wanted in {"", "all"}:
        return [name for name in DRIVERS if wanted or name not in TWINS]
    names = [name.strip() for name in wanted.split(",")]
    if unknown := set(names) - set(DRIVERS):
        raise pytest.UsageError(f"BENEATH_TEST_DRIVERS: no driver {', '.join(unknown)}; there are {', '.join(DRIVERS)}")
    return names


def requires(*features: str) -> pytest.MarkDecorator:
    """Skip a test on drivers without all these features; `test_features.py` lists what that skips."""
    return pytest.mark.requires(*features)
