"""The fixture of the tests of documents: a running application."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from beneath.application import Application
from dependencies import Container, Settings
from dependencies.section import Url
from dependencies.settings import ControlSettings, DbSettings, LogSettings, MailSettings
from models.user import UserCreated


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    settings = Settings(
        db=DbSettings(url=Url(f"sqlite:///{tmp_path}/beneath.db")),
        control=ControlSettings(port=0),
        log=LogSettings(level="warning"),
        mail=MailSettings(folder=tmp_path / "mail"),
    )
    container = Container(settings=settings)

    async def record(event: UserCreated) -> None: ...

    container.infra.bus().add_async_listener(record, name="probe.record")
    async with Application(container).running("all") as running:
        yield running
