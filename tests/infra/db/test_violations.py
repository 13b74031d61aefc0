"""The kinds of violated constraints on SQLite."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from infra.db import Database, violation_of
from tests.infra.db.violating import VIOLATIONS, check, create


@pytest.mark.parametrize("statement", VIOLATIONS)
async def test_violated_constraint_has_its_kind(db: Database, statement: str) -> None:
    await create(db)
    await check(db, statement)


async def test_error_of_a_trigger_is_no_violated_reference(db: Database) -> None:
    with pytest.raises(IntegrityError) as caught:
        async with db.transaction() as tx:
            refuse = "CREATE TRIGGER t BEFORE INSERT ON item BEGIN SELECT RAISE (ABORT, 'refused'); END"
            await tx.session.execute(text(refuse))
            await tx.session.execute(text("INSERT INTO item VALUES (1, 'a')"))
    assert violation_of(caught.value) is None
