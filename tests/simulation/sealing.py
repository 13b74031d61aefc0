"""Closes a Python process off from everything that is not drawn from the seed: clocks, ids, addresses, threads."""

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
"""The PYTHONHASHSEED that a simulation runs under: the order of sets of str depends on it."""


class SimulatedClock:
    """A process's clocks: `monotonic` counts from a moment of its own, `time` can be stepped."""

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
    """Seal this Python process for good; it must be one of its own, started with `HASH_SEED`.

    Raises:
        RuntimeError: it was started with another hash seed.
    """
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        raise RuntimeError(f"a simulation runs with PYTHONHASHSEED={HASH_SEED}; use `python -m tests.simulation`")
    # What killed processes leave behind is collected after their simulation, in tasks that cannot go on.
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")
    for place, name, replacement in _REPLACED:
        setattr(place, name, replacement)


def record_logs(record: Callable[[str], None]) -> None:
    """Let `record` have every line that is logged, instead of printing it."""

    def processor(_: object, level: str, fields: Any) -> Any:  # noqa: ANN401 - structlog's own
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


def _numbered(event: Any) -> int:  # noqa: ANN401 - an asyncio.Event, given one attribute more
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
    (infra.db.sqlite, "BUSY_SLICE", 0.0),  # SQLite would wait in the thread that is to release the lock
)
