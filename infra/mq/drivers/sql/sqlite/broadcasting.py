"""Storage of broadcasts on SQLite, for the time in which receivers read them."""

import sqlite3
from collections.abc import Sequence

from infra.mq.drivers.sql.sqlite.numbers import last_number, reserve
from infra.mq.drivers.sql.sqlite.publishing import FORGOTTEN_EXTRA

FRAMES_AT_ONCE = 1000

FRAMES_BYTES = 4 * 1024 * 1024
"""The size of frames, in bytes, after which a read ends; the reads run in the event loop."""

_SEQUENCE = "beneath_broadcast_number"
_INSERT = "INSERT INTO beneath_broadcast (id, origin, at, frame) VALUES (?, ?, ?, ?)"
_PRUNE = """
DELETE FROM beneath_broadcast WHERE id IN (SELECT id FROM beneath_broadcast WHERE at < ? ORDER BY at LIMIT ?)
"""
_AFTER = f"SELECT id, origin, frame FROM beneath_broadcast WHERE id > ? ORDER BY id LIMIT {FRAMES_AT_ONCE}"  # noqa: S608  # a constant


def broadcast(db: sqlite3.Connection, frames: Sequence[bytes], origin: str, kept: float, *, now: float) -> None:
    """Store frames, and remove some frames older than `kept` seconds."""
    if not frames:
        return
    first = reserve(db, len(frames), _SEQUENCE)
    db.executemany(_INSERT, [(first + place, origin, now, frame) for place, frame in enumerate(frames)])
    db.execute(_PRUNE, (now - kept, len(frames) + FORGOTTEN_EXTRA))


def last_broadcast(db: sqlite3.Connection) -> int:
    """Return the number of the last stored frame, even if it has been removed."""
    return last_number(db, _SEQUENCE)


def broadcasts_after(db: sqlite3.Connection, after: int, origin: str) -> tuple[list[bytes], int, bool]:
    """Return other origins' frames after number `after`, the last number read, and whether frames are missing."""
    frames: list[bytes] = []
    seen, missing, size = after, False, 0
    cursor = db.execute(_AFTER, (after,))
    for number, sender, frame in cursor:
        missing = missing or number != seen + 1
        seen = number
        if sender != origin:
            frames.append(frame)
        size += len(frame)
        if size > FRAMES_BYTES:
            break
    cursor.close()
    if seen == after:
        # All frames sent meanwhile may have been removed.
        seen = max(after, last_broadcast(db))
        missing = seen > after
    return frames, seen, missing
