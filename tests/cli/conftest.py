"""Fixtures and checks of the tests that run commands in this process, in an empty folder without settings."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from beneath.cli import execute
from dependencies import Settings
from dependencies.section import Url
from dependencies.settings import ControlSettings, DbSettings, LogSettings, MailSettings, MqSettings, WorkerSettings


@dataclass(frozen=True, slots=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


Beneath = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to an empty folder; restore the logging configuration afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BENEATH_"):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level, before = list(root.handlers), root.level, structlog.get_config()
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.configure(**before)


@pytest.fixture
def beneath(capsys: pytest.CaptureFixture[str]) -> Beneath:
    """Return a function that runs a command."""

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = execute(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an application in the test: a free port, the memory queue, and files in the test's folder."""
    return Settings(
        db=DbSettings(url=Url(f"sqlite:///{tmp_path}/data/beneath.db")),
        mq=MqSettings(driver="memory"),
        control=ControlSettings(port=0),
        worker=WorkerSettings(port=0),
        log=LogSettings(level="warning"),
        mail=MailSettings(folder=tmp_path / "mail"),
    )


def refused(result: Result, *parts: str, code: int = 2) -> None:
    """Check that a command wrote one line to standard error, and nothing to standard output."""
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("beneath: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err


async def sign_up(url: str, email: str) -> dict[str, Any]:
    """Create a user with the API at `url`; return the response."""
    async with httpx2.AsyncClient() as client:
        response = await client.post(f"{url}/v1/users", json={"email": email, "name": "Ada"})
    assert response.status_code == 201
    body: dict[str, Any] = response.json()
    return body
