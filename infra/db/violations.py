"""The kind of constraint that an `IntegrityError` is about, the same for SQLite and PostgreSQL."""

import sqlite3
from enum import StrEnum
from typing import Final

from sqlalchemy.exc import IntegrityError


class Violation(StrEnum):
    """A kind of constraint that depends on rows of other transactions, so that correct code may violate it."""

    REFERENCE = "reference"
    """A foreign key: a row refers to an absent row, or a row that another one refers to was to be deleted."""

    DUPLICATE = "duplicate"
    """A unique constraint, a primary key or an exclusion constraint: another row has these values."""


_SQLITE: Final = {
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Violation.REFERENCE,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Violation.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Violation.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_ROWID: Violation.DUPLICATE,
}

_RESTRICTED: Final = "FOREIGN KEY constraint failed"

_POSTGRESQL: Final = {
    "23001": Violation.REFERENCE,  # ON DELETE RESTRICT
    "23503": Violation.REFERENCE,
    "23505": Violation.DUPLICATE,
    "23P01": Violation.DUPLICATE,
}


def violation_of(error: IntegrityError) -> Violation | None:
    """Return the kind of constraint that a statement or COMMIT violated; None for NOT NULL and CHECK.

    A service that expects a violation catches it around `tx.session.flush()`, and raises an error of its own.
    """
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    if code is None:
        return _POSTGRESQL.get(getattr(error.orig, "sqlstate", ""))
    # SQLite implements ON DELETE RESTRICT by a trigger of its own, and reports its code.
    restricted = code == sqlite3.SQLITE_CONSTRAINT_TRIGGER and str(error.orig) == _RESTRICTED
    return Violation.REFERENCE if restricted else _SQLITE.get(code)
