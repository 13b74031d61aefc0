"""Statements that violate each kind of constraint, with the kind that `violation_of` returns."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from infra.db import Database, Violation, violation_of

TABLES = (
    "CREATE TABLE whole (id INTEGER PRIMARY KEY, code INTEGER UNIQUE, size INTEGER NOT NULL CHECK (size > 0))",
    "CREATE TABLE part (whole INTEGER REFERENCES whole (id))",
    "CREATE TABLE kept (whole INTEGER REFERENCES whole (id) ON DELETE RESTRICT)",
    "CREATE TABLE late (whole INTEGER REFERENCES whole (id) DEFERRABLE INITIALLY DEFERRED)",
    "INSERT INTO whole VALUES (1, 1, 1), (2, 2, 1)",
    "INSERT INTO part VALUES (1)",
    "INSERT INTO kept VALUES (2)",
)

VIOLATIONS = {
    "INSERT INTO part VALUES (9)": Violation.REFERENCE,
    "UPDATE part SET whole = 9": Violation.REFERENCE,
    "INSERT INTO late VALUES (9)": Violation.REFERENCE,
    "DELETE FROM whole WHERE id = 1": Violation.REFERENCE,
    "DELETE FROM whole WHERE id = 2": Violation.REFERENCE,
    "INSERT INTO whole VALUES (1, 3, 1)": Violation.DUPLICATE,
    "INSERT INTO whole VALUES (3, 1, 1)": Violation.DUPLICATE,
    "INSERT INTO whole VALUES (3, 3, NULL)": None,
    "INSERT INTO whole VALUES (3, 3, 0)": None,
}


async def create(db: Database) -> None:
    """Create the tables with their rows."""
    async with db.transaction() as tx:
        for statement in TABLES:
            await tx.session.execute(text(statement))


async def check(db: Database, statement: str) -> None:
    """Check the kind of violation of a statement's error, and that nothing is changed."""
    with pytest.raises(IntegrityError) as caught:
        async with db.transaction() as tx:
            await tx.session.execute(text(statement))
    assert violation_of(caught.value) == VIOLATIONS[statement]
    async with db.read() as session:
        counts = (await session.execute(text("SELECT (SELECT count(*) FROM whole), (SELECT count(*) FROM part)"))).one()
    assert counts == (2, 1)
