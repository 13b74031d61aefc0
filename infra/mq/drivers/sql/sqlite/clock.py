"""The queue's time on SQLite, by which every due time is: one that no step of a machine's clock moves.

All processes on one file run on one machine, so they share its monotonic clock. The first of them after the machine's
start notes by how much the wall clock is ahead of that; from then on the queue's time is the monotonic clock plus this,
the same in all processes. After the next start of the machine it goes on by the wall clock, or from where it was.
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
"""After how many seconds it is noted, with whatever is written then, how far the time is."""

STARTS_KEPT = 8
"""How many starts of machines are remembered."""

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
    """A `Clock` whose `time` is the queue's, once `start` has been called."""

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
        """Go by what another process of this start of the machine has noted; False if none has. Only reads."""
        row = db.execute(_AHEAD, (self._boot,)).fetchone()
        # A monotonic clock that went back is another one, whatever its name.
        if row is None or self._elapsed() + row[0] < row[1] - NOTED_EVERY:
            return False
        self._ahead = row[0]
        return True

    def start(self, db: sqlite3.Connection) -> None:
        """Note by how much the wall clock is ahead, unless another process has; time never goes back for it."""
        if self.resume(db):
            return
        (latest,) = db.execute(_LATEST).fetchone()
        now = max(self._clock.time(), latest or 0.0)
        self._ahead = now - self._elapsed()
        db.execute(_START, {"boot": self._boot, "ahead": self._ahead, "seen": now})
        db.execute(_FORGET, (STARTS_KEPT,))

    def reach(self, db: sqlite3.Connection, now: float) -> float:
        """Return the time, `now` at the earliest, and write it down if the last time was long ago."""
        now = max(now, self.time())
        if now - self._noted >= NOTED_EVERY:
            self._noted = now
            db.execute(_NOTE, (now, self._boot, now))
        return now


def _elapsed(clock: Clock) -> Callable[[], float]:
    """Return the monotonic clock to go by: of the system's, the one that goes on while the machine is suspended."""
    if type(clock).monotonic is SystemClock.monotonic and hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return clock.monotonic


def boot() -> str:
    """Return what names this start of this machine, as far as its monotonic clock goes; empty where nothing does."""
    names = []
    with suppress(OSError):
        names.append(_BOOT_ID.read_text(encoding="ascii").strip())
        names.append(str(_TIME_NAMESPACE.readlink()))
    return " ".join(names)
