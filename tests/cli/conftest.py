"""Commands as a user gives them, in this process: a folder of their own, and no setting from outside."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from beneath.cli import execute
from dependencies import Settings
from dependencies.settings import (
    ControlSettings,
    DbSettings,
    LogSettings,
    MailSettings,
    MqSettings,
    Url,
    WorkerSettings,
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Beneath = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder; afterwards log as before."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BENEATH_"):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def beneath(capsys: pytest.CaptureFixture[str]) -> Beneath:
    """Give a command."""

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = execute(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """For an application inside the test: any free port, the memory queue, files in the test's folder."""
    return Settings(
        db=DbSettings(url=Url(f"sqlite:///{tmp_path}/data/beneath.db")),
        mq=MqSettings(driver="memory"),
        control=ControlSettings(port=0),
        worker=WorkerSettings(port=0),
        log=LogSettings(level="warning"),
        mail=MailSettings(folder=tmp_path / "mail"),
    )
