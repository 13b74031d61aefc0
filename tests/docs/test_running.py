"""Statements of the documents about a running application, checked against one."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest

from beneath.application import Application
from dependencies import Container, Settings
from dependencies.section import Url
from dependencies.settings import ControlSettings, DbSettings, LogSettings, MailSettings
from tests.docs.blocks import ROOT, blocks, prose

T = TypeVar("T")


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    settings = Settings(
        db=DbSettings(url=Url(f"sqlite:///{tmp_path}/beneath.db")),
        control=ControlSettings(port=0),
        log=LogSettings(level="warning"),
        mail=MailSettings(folder=tmp_path / "mail"),
    )
    async with Application(Container(settings=settings)).running("all") as running:
        yield running


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


async def test_table_of_metrics_lists_the_exported_metrics(application: Application) -> None:
    told = re.findall(r"^\| `(beneath_\w+)` \|", prose(ROOT / "docs" / "operations.md"), flags=re.MULTILINE)
    async with httpx2.AsyncClient() as client:
        text = await until(lambda: _metrics(client, application.urls["control-server"]))
    exported = re.findall(r"^# HELP (\w+)", text, flags=re.MULTILINE)
    assert sorted(told) == sorted(exported)


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Call `condition` until it returns a true value; return that value."""
    async with asyncio.timeout(10):
        while True:
            if found := await condition():
                return found
            await asyncio.sleep(0.01)


async def mailed(folder: Path) -> bool:
    return await asyncio.to_thread(lambda: any(folder.glob("*.eml")))


async def _entries(answer: Awaitable[httpx2.Response], *, at_least: int) -> list[dict[str, object]] | None:
    entries: list[dict[str, object]] = (await answer).json()["items"]
    return entries if len(entries) >= at_least else None


async def _metrics(client: httpx2.AsyncClient, url: str) -> str | None:
    text = (await client.get(f"{url}/metrics")).text
    return text if "beneath_listener_" in text else None


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
