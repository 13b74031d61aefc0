"""The application during and after an outage of PostgreSQL."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.application import SERVER, WORKER, Caller, Installation
from tests.e2e.processes import Processes, until
from tests.postgres_servers import PostgresServer, new_server
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(120)]

SECONDS = 20.0
"""Seconds within which every process must recover."""


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    server = new_server()
    yield server
    server.stop(signal.SIGQUIT)


@pytest.fixture
def near(processes: Processes, tmp_path: Path, postgres: PostgresServer) -> Iterator[Installation]:
    """Return an installation on a separate server."""
    with chosen().place(tmp_path, postgres=postgres) as place:
        yield Installation(processes, tmp_path, place)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_processes_recover_after_an_outage_of_postgresql(
    near: Installation, postgres: PostgresServer, how: signal.Signals
) -> None:
    server, worker = (near.start(name) for name in (SERVER, WORKER))
    ada = server.sign_up("ada@example.com")
    until(lambda: near.mails_to("ada@example.com") and len(journal_of(ada)) == 2, "all goes well")

    postgres.stop(how)
    until(lambda: server.get("/readyz").status_code == 503, "the server says that it is not ready")
    until(lambda: worker.get("/readyz").status_code == 503, "the worker says so, too")
    assert server.get("/healthz").status_code == 200
    refused = httpx2.post(f"{server.url}/v1/users", json={"email": "bob@example.com", "name": "Bob"}, timeout=30)
    assert refused.status_code == 503, refused.text
    assert ada.request("GET", "/v1/organizations").status_code == 503

    postgres.start()
    back_at = time.monotonic()
    for each in (server, worker):
        until(lambda it=each: it.get("/readyz").status_code == 200, "it is ready again", timeout=SECONDS)  # type: ignore[misc]
    bob = server.sign_up("bob@example.com")
    until(lambda: near.mails_to("bob@example.com"), "the mail is there", timeout=SECONDS)
    until(lambda: len(journal_of(bob)) == 2, "the journal is written", timeout=SECONDS)
    print(f"all was done {time.monotonic() - back_at:.1f} s after the start")  # noqa: T201
    assert len(near.mails()) == 2
    for each in (worker, server):
        each.stop()
        assert not any("Traceback" in str(line) for line in each.logs)


def journal_of(caller: Caller) -> list[dict[str, Any]]:
    [organization] = caller.items("/v1/organizations")
    return caller.items(f"/v1/organizations/{organization['id']}/audit")
