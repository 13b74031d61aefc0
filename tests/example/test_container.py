"""The container and the settings of the example."""

from pathlib import Path

import pytest

from dependencies import Container, Settings, load_settings
from dependencies.section import Url
from dependencies.settings import DbSettings, MqSettings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(db=DbSettings(url=Url(f"sqlite:///{tmp_path}/test.db")), mq=MqSettings(driver="memory"))


def test_lifetime_of_an_invite_follows_the_setting(settings: Settings) -> None:
    assert Container(settings=settings).services.organization()._invite_lifetime == 7 * 86_400
    given = load_settings(environ={"BENEATH_ORGANIZATION_INVITE_LIFETIME": "0.5"}, folder="nowhere").organization
    container = Container(settings=settings.model_copy(update={"organization": given}))
    assert container.services.organization()._invite_lifetime == 0.5


def test_default_file_of_the_project_holds_the_defaults() -> None:
    folder = Path(__file__).parents[2] / "config"
    assert (folder / ".default.yaml").is_file()
    assert load_settings(environ={}, folder=folder) == Settings()
