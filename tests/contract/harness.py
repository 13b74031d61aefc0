"""What a driver brings to the contract tests: a store of its own, and ways to do to it what the world does.

To put a driver under the contract, write a module with `open_harness(folder, clock)` and name it in `DRIVERS`.
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
    """One empty store, and everything that a test may do to it. All its queues go by `clock`."""

    @property
    def clock(self) -> FakeClock:
        """The time, for every queue of this harness."""
        ...

    @property
    def dedupe_window(self) -> float:
        """For how many seconds the queues remember an id."""
        ...

    @property
    def lease(self) -> float | None:
        """After how many seconds without `renew` a worker counts as dead; None where only its process decides."""
        ...

    async def queue(self) -> MessageQueue:
        """Return an open queue on the store.

        Each call stands for another process and returns another instance; without `multi_process` always the same.
        The harness closes them all at its end; a test may close one before that.
        """
        ...

    async def reopen(self) -> MessageQueue:
        """End the processes of all queues so far, without closing anything first; open a new one. Needs `durable`."""
        ...

    async def crash(self, consumer: Consumer) -> None:
        """Let the worker die suddenly; when this returns, others can see that it is dead."""
        ...

    def transaction(self, queue: MessageQueue) -> AbstractAsyncContextManager[object]:
        """Open an ambient transaction of the database that `queue` is on; an exception rolls back. Needs
        `transactional`.
        """
        ...


Opener = Callable[[Path, FakeClock], AbstractAsyncContextManager[Harness]]


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver under test: where its harness is, and what it says it can do."""

    module: str
    """With the name of the opener after a colon, if it is not `open_harness`."""

    features: Features

    def open(self, folder: Path, clock: FakeClock) -> AbstractAsyncContextManager[Harness]:
        """Open a harness on a new, empty store, which may keep its files in `folder`."""
        module, _, name = self.module.partition(":")
        opener = cast("Opener", getattr(importlib.import_module(module), name or "open_harness"))
        return opener(folder, clock)


MAX_BODY = 64 * 1024 * 1024
"""The largest body, in bytes, that every driver takes under the contract, so that a larger one need not be huge."""

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
"""Drivers that differ from another one in the server's version alone: for `make test-all`."""


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
