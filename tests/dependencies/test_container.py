"""The container: construction of each object, choice of drivers, and overrides in tests."""

import threading
from dataclasses import fields
from pathlib import Path

import pytest
from dependency_injector import providers

from bus import Bus
from dependencies import AllServices, Container, Settings, load_settings
from dependencies.section import Url
from dependencies.settings import DbSettings, MqSettings
from infra.clock import FakeClock
from infra.mail import FolderMailer, SmtpMailer
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.redis import RedisQueue
from infra.mq.drivers.sql import SqlQueue


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(db=DbSettings(url=Url(f"sqlite:///{tmp_path}/test.db")), mq=MqSettings(driver="memory"))


def test_constructing_everything_does_no_io(settings: Settings, tmp_path: Path) -> None:
    container = Container(settings=settings)
    services = container.services.all()
    assert isinstance(services, AllServices)
    assert services.secret is container.services.secret()
    assert any("SecretService" in each.name for each in container.infra.bus().listeners)
    assert list(tmp_path.iterdir()) == []


def test_the_providers_are_the_fields_of_all_services(settings: Settings) -> None:
    container = Container(settings=settings)
    names = {name for name, each in vars(container.services).items() if isinstance(each, providers.BaseSingleton)}
    assert names - {"all"} == {each.name for each in fields(AllServices)}


@pytest.mark.parametrize(("driver", "cls"), [("sql", SqlQueue), ("memory", MemoryQueue), ("redis", RedisQueue)])
def test_queue_driver_follows_the_setting(settings: Settings, driver: str, cls: type) -> None:
    chosen = settings.model_copy(update={"mq": MqSettings.model_validate({"driver": driver})})
    assert isinstance(Container(settings=chosen).infra.mq(), cls)


@pytest.mark.parametrize(("url", "cls"), [("smtps://mail.example.com", SmtpMailer), ("null", FolderMailer)])
def test_mailer_follows_the_setting(settings: Settings, url: str, cls: type) -> None:
    mail = load_settings(environ={"BENEATH_MAIL_SMTP_URL": url}, folder="nowhere").mail
    assert isinstance(Container(settings=settings.model_copy(update={"mail": mail})).infra.mailer(), cls)


def test_each_container_has_separate_objects(settings: Settings) -> None:
    first, second = Container(settings=settings), Container(settings=settings)
    assert first.infra.bus() is not second.infra.bus()
    assert first.infra.telemetry().registry is not second.infra.telemetry().registry
    with first.infra.mailer.override(providers.Object("fake")):
        assert isinstance(second.infra.mailer(), FolderMailer)


def test_threads_share_one_object(settings: Settings) -> None:
    container = Container(settings=settings)
    built: list[Bus] = []
    threads = [threading.Thread(target=lambda: built.append(container.infra.bus())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({id(each) for each in built}) == 1


def test_override_reaches_every_dependent_object(settings: Settings) -> None:
    container = Container(settings=settings)
    clock, queue = FakeClock(), MemoryQueue(clock=FakeClock())
    container.infra.clock.override(providers.Object(clock))
    container.infra.mq.override(providers.Object(queue))
    bus: Bus = container.infra.bus()
    assert bus.mq is queue
    assert container.services.user()._clock is clock


def test_a_whole_service_can_be_replaced(settings: Settings) -> None:
    container = Container(settings=settings)
    fake = object()
    container.services.secret.override(providers.Object(fake))
    assert container.services.all().secret is fake
    assert not any("SecretService" in each.name for each in container.infra.bus().listeners)


def test_container_without_settings_reads_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENEATH_CONTROL_PORT", "4567")
    assert Container().settings().control.port == 4567
