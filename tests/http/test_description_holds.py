"""Schemathesis against the running API: the API conforms to its OpenAPI description."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from beneath.http.app import HttpOptions
from beneath.runtime.server import HttpServer
from tests.http.conftest import Api

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(300)]

# The check that every valid request is accepted: a valid `If-Match` that matches nothing is answered by
# 412, which the check does not know.
LEFT_OUT = "positive_data_acceptance"

# This operation revokes the secret of the test client, which would fail all later requests.
REVOCATION = "/v1/secrets/{secret_id}"


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(max_sign_ups=100_000, max_invites=100_000)


@pytest.fixture
async def url(api: Api) -> AsyncIterator[str]:
    server = HttpServer("test", api.app, section="control", host="127.0.0.1", port=0, grace=1)
    serving = asyncio.create_task(server.run())
    yield server.url
    serving.cancel()
    await asyncio.wait({serving})


@pytest.mark.parametrize("choice", ["exclude", "include"])
async def test_api_conforms_to_its_description(api: Api, url: str, tmp_path: Path, choice: str) -> None:
    ada = await api.sign_up()
    program = Path(sys.executable).with_name("schemathesis")
    command = ["run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {ada.secret}"]
    options = [f"--{choice}-path", REVOCATION, "--exclude-checks", LEFT_OUT, "--max-examples", "20", "--seed", "1"]
    process = await asyncio.create_subprocess_exec(
        program, *command, *options, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    others = sum(len(methods) for methods in api.app.openapi()["paths"].values()) - 1
    assert f" {others if choice == 'exclude' else 1} selected " in output.decode(), output.decode()
