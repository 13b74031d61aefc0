"""Fixtures of the HTTP tests: the API in this process, clients, and checks of problems."""

from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from beneath.http.app import HttpOptions, create_app
from beneath.http.core.app import create_api
from beneath.http.core.domain import Domain
from tests.world import World, world


@dataclass(slots=True)
class Api:
    """The API in this process, with a client."""

    domain: World
    app: FastAPI
    client: httpx2.AsyncClient
    broken: dict[str, Exception] = field(default_factory=dict)
    """What `/readyz` finds wrong, by part."""

    async def sign_up(self, email: str = "ada@example.com", name: str = "Ada") -> "Caller":
        """Create a user, and return a client that acts as that user."""
        answer = await self.client.post("/v1/users", json={"email": email, "name": name})
        assert answer.status_code == 201, answer.text
        body = answer.json()
        return Caller(self.client, body["secret"], body["user"]["id"])


@dataclass(slots=True)
class Caller:
    """A client with the secret of a user."""

    client: httpx2.AsyncClient
    secret: str
    user_id: str

    async def __call__(
        self, method: str, path: str, *, json: object = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.secret}", **(headers or {})}
        return await self.client.request(method, path, json=json, headers=headers)

    async def organization(self) -> str:
        """Return the id of the user's first organization."""
        organization: str = (await self("GET", "/v1/organizations")).json()["items"][0]["id"]
        return organization


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions()


@pytest.fixture
def busy_timeout() -> float:
    """Return the seconds that a transaction waits for a locked database."""
    return 10.0


@pytest.fixture
async def api(tmp_path: Path, migrated: Path, options: HttpOptions, busy_timeout: float) -> AsyncIterator[Api]:
    async with world(migrated, tmp_path / "beneath.db", busy_timeout=busy_timeout) as domain:
        broken: dict[str, Exception] = {}

        async def probe() -> None:
            if "database" in broken:
                raise broken["database"]

        async def scrape() -> bytes:
            return b"beneath_up 1\n"

        app = create_app(
            domain,
            correlate=domain.kit.bus.correlation,
            ready={"database": probe},
            metrics=scrape,
            clock=domain.kit.clock,
            options=options,
        )
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Api(domain, app, client, broken)


def problem(answer: httpx2.Response, status: int, slug: str) -> dict[str, Any]:
    """Check that `answer` is the problem `slug`; return its body."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"urn:beneath:problem:{slug}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert "Traceback" not in answer.text
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def bare_api(*domains: Domain) -> FastAPI:
    """Return an API of `domains` alone, without services."""

    async def scrape() -> bytes:
        return b""

    return create_api(
        domains,
        title="Test",
        description="",
        version="0",
        correlate=lambda _: nullcontext(),
        ready={},
        metrics=scrape,
        max_body=1000,
    )
