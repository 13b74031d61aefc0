"""Statements of the documents about a running application, checked against one."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx2

from beneath.application import Application
from tests.docs.blocks import ROOT, prose

T = TypeVar("T")


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


async def _metrics(client: httpx2.AsyncClient, url: str) -> str | None:
    text = (await client.get(f"{url}/metrics")).text
    return text if "beneath_listener_" in text else None
