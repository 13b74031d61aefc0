"""The calls and the example of the README, carried out."""

import asyncio
import shlex
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

import httpx2

from beneath.application import Application
from tests.docs.blocks import ROOT, blocks
from tests.docs.test_running import until


async def test_readme_calls_return_the_documented_output(application: Application, tmp_path: Path) -> None:
    text = "".join(each.text for each in blocks(ROOT / "README.md", "sh"))
    sign_up, organizations, projects, audit = (line for line in text.splitlines() if line.startswith("curl "))
    known: dict[str, str] = {}
    async with httpx2.AsyncClient() as client:

        async def call(line: str) -> httpx2.Response:
            return await carry_out(client, line, application.urls["control-server"], known)

        signed_up = await call(sign_up)
        assert signed_up.status_code == 201
        known["SECRET"] = signed_up.json()["secret"]
        known["ORGANIZATION"] = (await call(organizations)).json()["items"][0]["id"]
        assert len((await call(projects)).json()["items"]) == 1
        await until(lambda: mailed(tmp_path / "mail"))
        entries = await until(lambda: _entries(call(audit), at_least=2))
        assert [each["event"] for each in entries] == ["OrganizationCreated", "ProjectCreated"]


async def mailed(folder: Path) -> bool:
    return await asyncio.to_thread(lambda: any(folder.glob("*.eml")))


async def _entries(answer: Awaitable[httpx2.Response], *, at_least: int) -> list[dict[str, object]] | None:
    entries: list[dict[str, object]] = (await answer).json()["items"]
    return entries if len(entries) >= at_least else None


async def carry_out(client: httpx2.AsyncClient, line: str, url: str, known: dict[str, str]) -> httpx2.Response:
    """Send the request of a `curl` line to another address, with the shell's variables replaced."""
    for name, value in known.items():
        line = line.replace(f"${name}", value)
    headers: dict[str, str] = {}
    body: str | None = None
    address = ""
    arguments = iter(shlex.split(line)[1:])
    for each in arguments:
        match each:
            case "-s":
                pass
            case "-H":
                name, _, value = next(arguments).partition(": ")
                headers[name] = value
            case "-d":
                body = next(arguments)
            case _:
                address = each.replace("127.0.0.1:4000", url)
    return await client.request("GET" if body is None else "POST", address, headers=headers, content=body)


def test_readme_example_prints_the_documented_output(tmp_path: Path) -> None:
    (program,) = (each for each in blocks(ROOT / "README.md", "python") if each.options.get("file") == "example.py")
    (printed,) = (each for each in blocks(ROOT / "README.md", "text") if each.options.get("prints") == "example.py")
    (tmp_path / "example.py").write_text(program.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "worker st" not in line] == printed.text.splitlines()
