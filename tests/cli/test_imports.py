"""What a process imports: each package costs memory in every worker, and time at every start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_process import ROOT

pytestmark = pytest.mark.e2e

HELP = """
import contextlib, sys
from beneath.__main__ import main

sys.argv = ["beneath", "--help"]
with contextlib.suppress(SystemExit):
    main()
print("modules:", *sys.modules)
"""

WORKER = """
import asyncio, sys
from beneath.application import Application
from dependencies import Container, Settings
from dependencies.section import Url
from dependencies.settings import DbSettings, WorkerSettings

async def main():
    settings = Settings(db=DbSettings(url=Url("sqlite:///worker.db")), worker=WorkerSettings(port=0))
    async with Application(Container(settings=settings)).running("control-worker"):
        print("modules:", *sys.modules)

asyncio.run(main())
"""


def modules(program: str, folder: Path) -> set[str]:
    """Run `program` in a new interpreter, and return the modules that it lists."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'cmd'}"}
    done = subprocess.run(  # noqa: S603 - the tests' own programs
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    (listed,) = (line for line in done.stdout.splitlines() if line.startswith("modules: "))
    return set(listed.removeprefix("modules: ").split())


def test_help_imports_nothing_of_the_application(tmp_path: Path) -> None:
    found = modules(HELP, tmp_path)
    assert "typer" in found
    assert found & {"bus", "dependencies", "models", "services", "msgspec", "pydantic", "sqlalchemy"} == set()


def test_worker_imports_neither_the_api_nor_its_libraries(tmp_path: Path) -> None:
    assert "alembic" in modules(WORKER, tmp_path)  # which creates the tables
    found = modules(WORKER, tmp_path)
    assert {"services.user.service", "beneath.http.core.health"} <= found
    assert found & {"beneath.http.app", "beneath.http.domains", "fastapi", "alembic"} == set()
