"""The queue's clock on SQLite, which steps of the machine's wall clock do not affect.

All processes on one file run on one machine and share its monotonic clock. The first process after the machine's start
stores the difference between wall clock and monotonic clock. From then on the queue's time is the monotonic clock plus
this difference, the same in all processes. After the next start of the machine the queue's time continues with the wall
clock, or with the latest stored time if that is later.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from infra.clock import Clock, SystemClock
from infra.mq.drivers.sql.wrapped_clock import WrappedClock

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")

NOTED_EVERY = 1.0
"""Seconds between two writes of the present time, which are part of other writes."""

STARTS_KEPT = 8
"""The number of machine starts whose difference is stored."""

_AHEAD = "SELECT ahead, seen FROM beneath_clock WHERE boot = ?"
_LATEST = "SELECT max(seen) FROM beneath_clock"
_START = """
INSERT INTO beneath_clock (boot, ahead, seen) VALUES (:boot, :ahead, :seen)
ON CONFLICT (boot) DO UPDATE SET ahead = :ahead, seen = :seen
"""
_FORGET = """
DELETE FROM beneath_clock WHERE boot NOT IN (SELECT boot FROM beneath_clock ORDER BY seen DESC LIMIT ?)
"""
_NOTE = "UPDATE beneath_clock SET seen = ? WHERE boot = ? AND seen < ?"


class QueueClock(WrappedClock):
    """A `Clock` whose `time` is the queue's time, once `resume` or `start` has been called."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._elapsed = _elapsed(clock)
        self._boot = boot()
        self._ahead: float | None = None
        self._noted = 0.0

    def time(self) -> float:
        if self._ahead is None:
            return self._clock.time()
        return self._elapsed() + self._ahead

    def resume(self, db: sqlite3.Connection) -> bool:
        """Use the difference stored since this start of the machine; return False if there is none. Only reads."""
        row = db.execute(_AHEAD, (self._boot,)).fetchone()
        # A monotonic clock that went back belongs to another start of the machine.
        if row is None or self._elapsed() + row[0] < row[1] - NOTED_EVERY:
            return False
        self._ahead = row[0]
        return True

    def start(self, db: sqlite3.Connection) -> None:
        """Store the difference unless another process has stored it; the queue's time never goes back."""
        if self.resume(db):
            return
        (latest,) = db.execute(_LATEST).fetchone()
        now = max(self._clock.time(), latest or 0.0)
        self._ahead = now - self._elapsed()
        db.execute(_START, {"boot": self._boot, "ahead": self._ahead, "seen": now})
        db.execute(_FORGET, (STARTS_KEPT,))

    def reach(self, db: sqlite3.Connection, now: float) -> float:
        """Return the later of the queue's time and `now`; store it every `NOTED_EVERY` seconds."""
        now = max(now, self.time())
        if now - self._noted >= NOTED_EVERY:
            self._noted = now
            db.execute(_NOTE, (now, self._boot, now))
        return now


def _elapsed(clock: Clock) -> Callable[[], float]:
    """Return the monotonic clock to use; of the system's, the one that continues while the machine is suspended."""
    if type(clock).monotonic is SystemClock.monotonic and hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return clock.monotonic


def boot() -> str:
    """Return an identifier of this start of the machine and of its monotonic clock; "" if the system has none."""
    names = []
    with suppress(OSError):
        names.append(_BOOT_ID.read_text(encoding="ascii").strip())
        names.append(str(_TIME_NAMESPACE.readlink()))
    return " ".join(names)
