"""Replaces all sources of nondeterminism in a Python process: clocks, random ids, addresses and threads."""

import asyncio
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import structlog
import uuid_utils

import bus.worker.session
import bus.worker.worker
import infra.db.sqlite
from tests.simulation.database import InlineConnection
from tests.simulation.loop import EPOCH, PROCESS, Process, SimulatedLoop
from tests.simulation.replacements import NumberedSlot, SimulatedHeartbeat, SimulatedThreads

HASH_SEED = "0"
"""The PYTHONHASHSEED of a simulation, on which the order of sets of str depends."""


class SimulatedClock:
    """The clock of a simulated process, with its own start of `monotonic`, and a `time` that faults step."""

    def __init__(self, process: Process, loop: SimulatedLoop) -> None:
        self._process = process
        self._loop = loop

    def time(self) -> float:
        return EPOCH + self._loop.time() + self._process.wall_offset

    def monotonic(self) -> float:
        return self._loop.time() + self._process.monotonic_offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True


def seal() -> None:
    """Make this Python process deterministic, permanently; it must have been started with `HASH_SEED`.

    Raises:
        RuntimeError: the process was started with another hash seed.
    """
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        raise RuntimeError(f"a simulation runs with PYTHONHASHSEED={HASH_SEED}; use `python -m tests.simulation`")
    # Tasks of killed processes are garbage-collected after the simulation, which would print errors.
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")
    for place, name, replacement in _REPLACED:
        setattr(place, name, replacement)


def record_logs(record: Callable[[str], None]) -> None:
    """Pass every log line to `record` instead of printing it."""

    def processor(_: object, level: str, fields: Any) -> Any:  # noqa: ANN401 - the types of structlog's processors
        error = fields.pop("exc_info", None)
        text = " ".join(f"{key}={value}" for key, value in fields.items() if key != "event")
        cause = f" {type(error).__name__}: {error}" if isinstance(error, BaseException) else ""
        record(f"{level} {fields.get('event')} {text}{cause}")
        raise structlog.DropEvent

    structlog.configure(processors=[processor], cache_logger_on_first_use=False)


def _wall() -> float:
    process = PROCESS.get(None)
    return EPOCH + asyncio.get_running_loop().time() + (process.wall_offset if process else 0.0)


def _monotonic() -> float:
    process = PROCESS.get(None)
    return asyncio.get_running_loop().time() + (process.monotonic_offset if process else 0.0)


def _random() -> Random:
    return PROCESS.get().random


def _uuid4() -> uuid.UUID:
    return uuid.UUID(int=_random().getrandbits(128), version=4)


def _uuid7() -> uuid.UUID:
    bits = int(_wall() * 1000) << 80 | _random().getrandbits(80)
    return uuid.UUID(int=bits & ~(0xF << 76 | 0x3 << 62) | 7 << 76 | 2 << 62)  # version 7, variant 2


def _numbered(event: Any) -> int:  # noqa: ANN401 - an asyncio.Event, which gets an attribute
    number: int | None = getattr(event, "_simulated_number", None)
    if number is None:
        loop = asyncio.get_running_loop()
        number = event._simulated_number = loop.number() if isinstance(loop, SimulatedLoop) else id(event)
    return number


_REPLACED = (
    (time, "time", _wall),
    (time, "monotonic", _monotonic),
    (uuid, "uuid4", _uuid4),
    (uuid_utils, "uuid7", _uuid7),
    (asyncio.Event, "__hash__", _numbered),
    (bus.worker.session, "Slot", NumberedSlot),
    (bus.worker.session, "Heartbeat", SimulatedHeartbeat),
    (bus.worker.worker, "ThreadPool", SimulatedThreads),
    (infra.db.sqlite, "SQLiteConnection", InlineConnection),
    (infra.db.sqlite, "BUSY_SLICE", 0.0),  # SQLite would wait in the only thread, which has to release the lock
)
