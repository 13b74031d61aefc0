"""The kinds of violated constraints on PostgreSQL."""

import pytest

from infra.db import Database
from tests.infra.db.violating import VIOLATIONS, check, create


@pytest.mark.parametrize("statement", VIOLATIONS)
async def test_violated_constraint_has_its_kind(db: Database, statement: str) -> None:
    await create(db)
    await check(db, statement)
