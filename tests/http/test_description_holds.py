"""Schemathesis against the running API: what it describes is what it does."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from beneath.server import HttpServer
from tests.http.conftest import Api

# Left out: that whatever fits the description is accepted. An `If-Match` that fits may still match nothing, and is
# answered by 412, which that check does not know.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
]


@pytest.fixture
async def url(api: Api) -> AsyncIterator[str]:
    server = HttpServer("test", api.app, section="control", host="127.0.0.1", port=0, grace=1)
    serving = asyncio.create_task(server.run())
    yield server.url
    serving.cancel()
    await asyncio.wait({serving})


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_the_api_does_what_it_describes(api: Api, url: str, tmp_path: Path) -> None:
    ada = await api.sign_up()
    command = ["run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {ada.secret}", "--max-examples", "20"]
    # It would revoke the secret that it works with, and learn nothing from then on.
    only = ["--checks", ",".join(CHECKS), "--exclude-path", "/v1/secrets/{secret_id}", "--seed", "1"]
    program = Path(sys.executable).with_name("schemathesis")
    process = await asyncio.create_subprocess_exec(
        program, *command, *only, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    operations = sum(map(len, api.app.openapi()["paths"].values()))
    assert f"{operations - 1} selected" in output.decode(), output.decode()
