"""Violated constraints of SQLite and PostgreSQL, as the API answers them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import text
from structlog.testing import capture_logs

from beneath.http.core.domain import Domain
from beneath.http.core.routing import ApiRoute
from infra.db import Database, Violation
from tests import postgres_servers
from tests.http.conftest import bare_api, problem
from tests.infra.db.violating import VIOLATIONS, create

REFUSED = {statement: kind for statement, kind in VIOLATIONS.items() if kind is not None}


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'test.db'}"
        if request.param == "postgresql":
            url = await stack.enter_async_context(postgres_servers.shared().database())
        database = Database(url)
        await database.open()
        stack.push_async_callback(database.close)
        await create(database)
        yield database


def api_of(db: Database, statement: str) -> FastAPI:
    """Return an API with one route, which executes `statement`."""
    router = APIRouter(route_class=ApiRoute)

    @router.post("/changes")
    async def change() -> None:
        async with db.transaction() as tx:
            await tx.session.execute(text(statement))

    return bare_api(Domain(router))


async def posted(app: FastAPI) -> httpx2.Response:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        return await client.post("/v1/changes")


@pytest.mark.parametrize("statement", REFUSED)
async def test_violated_constraint_is_a_conflict_without_sql(db: Database, statement: str) -> None:
    with capture_logs() as lines:
        answer = await posted(api_of(db, statement))
    found = problem(answer, 409, "conflict")
    expected = "does not exist" if REFUSED[statement] is Violation.REFERENCE else "exists already"
    assert expected in found["detail"]
    for part in ("whole", "part", "INSERT", "constraint", "sqlalche.me"):
        assert part not in answer.text
    (line,) = [each for each in lines if each["event"] == "constraint violated"]
    assert line["violation"] == REFUSED[statement]
    assert "constraint" in line["error"]
    assert "\n" not in line["error"]


async def test_missing_value_is_an_internal_error(db: Database) -> None:
    with capture_logs() as lines:
        problem(await posted(api_of(db, "INSERT INTO whole VALUES (3, 3, NULL)")), 500, "internal")
    assert [each["event"] for each in lines] == ["request failed"]
