"""The sequences of the queue on SQLite."""

import sqlite3


def reserve(db: sqlite3.Connection, count: int, sequence: str = "beneath_number") -> int:
    """Reserve `count` consecutive numbers that were never used, and return the first."""
    (last,) = db.execute(
        "UPDATE beneath_counter SET value = value + ? WHERE name = ? RETURNING value", (count, sequence)
    ).fetchone()
    return int(last) - count + 1


def last_number(db: sqlite3.Connection, sequence: str) -> int:
    """Return the last reserved number."""
    (last,) = db.execute("SELECT value FROM beneath_counter WHERE name = ?", (sequence,)).fetchone()
    return int(last)
