"""The configurations of docs/deploy.md: named files exist, settings are accepted, and commands run."""

import asyncio
import re
import shlex
import sqlite3
import tomllib
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from redis import Redis
from structlog.testing import capture_logs

from beneath.application import CLOSE_TIMEOUT, Application
from dependencies import Container, Settings
from dependencies.migrations import HISTORIES
from dependencies.section import Url
from dependencies.settings import ControlSettings, DbSettings, MailSettings, MqSettings, RedisSettings
from dependencies.sources import load_settings
from infra.clock import FakeClock
from infra.db import Database
from infra.db.dialect import database_dialect_for
from infra.db.migrate import upgrade
from infra.db.postgresql import QUEUE_CONNECTIONS
from infra.mq.drivers.redis.address import RedisAddress
from infra.mq.drivers.sql.postgres.connections import SIZE
from infra.mq.drivers.sql.sqlite import presence
from models.user import UserCreated
from tests import postgres_servers, servers
from tests.contract import acting
from tests.contract.sqlite_harness import open_harness
from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.commands import check_command

DEPLOY = ROOT / "docs" / "deploy.md"

UNIT_KEYS = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        *("Type", "User", "WorkingDirectory", "EnvironmentFile", "StateDirectory", "StateDirectoryMode", "UMask"),
        *("ExecStartPre", "ExecStart", "ExecStartPost", "KillMode", "TimeoutStopSec"),
        *("Restart", "RestartSec", "RestartPreventExitStatus"),
        *("NoNewPrivileges", "PrivateTmp", "ProtectHome", "ProtectSystem"),
    },
    "Timer": {"OnCalendar", "Persistent"},
    "Install": {"WantedBy"},
}
BEGIN = "/srv/beneath/.venv/bin/beneath "


def named(language: str, **options: str) -> list[Block]:
    """Return the page's blocks in a language with the given options."""
    found = [each for each in blocks(DEPLOY, language) if options.items() <= each.options.items()]
    assert found, (language, options)
    return found


def unit(block: Block) -> RawConfigParser:
    parser = RawConfigParser(delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # systemd's keys are case-sensitive
    parser.read_string(block.text)
    return parser


def environment(block: Block) -> dict[str, str]:
    """Read a file of variables as systemd and a shell do."""
    return dict(each.split("=", 1) for each in shlex.split(block.text))


def slowest_stop(settings: Settings) -> float:
    """Return the longest duration of a shutdown in seconds: runnables, bus, queue and database."""
    return Application(Container(settings=settings)).grace + 3 * CLOSE_TIMEOUT


@pytest.fixture
def compose() -> dict[str, Any]:
    (block,) = named("yaml", file="compose.yaml")
    text = block.text.replace("${SMTP_URL:?}", "smtp://mail.example.com")
    content: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:\?\}", "change-me", text))
    return content


@pytest.mark.parametrize("block", named("ini"), ids=str)
def test_systemd_units_are_valid_and_leave_time_to_shut_down(block: Block) -> None:
    parsed = unit(block)
    for section in parsed.sections():
        assert set(parsed[section]) <= UNIT_KEYS[section], block
    service = parsed["Service"] if parsed.has_section("Service") else {}
    commands = [value for key, value in service.items() if key.startswith("Exec")]
    for each in commands:
        assert each.startswith((BEGIN, "/bin/", "/usr/bin/sqlite3 ")), block
        if each.startswith(BEGIN):
            check_command(block, shlex.split(each)[1:])
    if any(each.startswith(f"{BEGIN}start") for each in commands):
        assert float(service["TimeoutStopSec"]) > slowest_stop(Settings())
        assert service["RestartPreventExitStatus"] == "2"


@pytest.mark.parametrize("block", named("env"), ids=str)
def test_environment_files_are_accepted(block: Block) -> None:
    settings = load_settings(environ=environment(block), folder="nowhere")
    assert settings.env == "production"
    database_dialect_for(settings.db.url.get_secret_value(), 1.0)
    if settings.mq.driver == "redis":
        RedisAddress.parse(settings.mq.redis.url.get_secret_value())


def test_writable_paths_of_the_unit_contain_the_database() -> None:
    (variables,) = named("env", step="sqlite")
    database = environment(variables)["BENEATH_DB_URL"]
    service, backup, _ = (unit(each) for each in named("ini", step="sqlite"))
    folder = Path("/var/lib") / service["Service"]["StateDirectory"]
    assert database == f"sqlite:///{folder}/beneath.db"
    assert f"{folder}/beneath.db" in backup["Service"]["ExecStart"]


def test_compose_file_names_existing_targets_and_valid_settings(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ours = {name: each for name, each in services.items() if each["image"] == "beneath"}
    assert set(ours) == {"migrate", "server", "worker"}
    for name, each in ours.items():
        check_command(name, each["command"])
        settings = load_settings(environ=each["environment"], folder="nowhere")
        assert float(each["stop_grace_period"].removesuffix("s")) > slowest_stop(settings)
        database_dialect_for(settings.db.url.get_secret_value(), 1.0)
        hosts = {settings.db.url.get_secret_value(), settings.mq.redis.url.get_secret_value()}
        assert {re.split(r"[/:]", url.rpartition("@")[2])[0] for url in hosts} == set(services) - set(ours)
    for each in services.values():
        assert set(each.get("depends_on", {})) <= set(services)
        volumes = {volume.partition(":")[0] for volume in each.get("volumes", [])}
        assert {volume for volume in volumes if not volume.startswith(".")} <= set(compose["volumes"])


def test_image_copies_existing_files_and_starts_an_existing_command() -> None:
    (block,) = named("dockerfile")
    for source in re.findall(r"^COPY (\S+)", block.text, flags=re.MULTILINE):
        assert (ROOT / source).exists(), source
    (command,) = re.findall(r"^CMD (.*)$", block.text, flags=re.MULTILINE)
    check_command(block, yaml.safe_load(command))
    assert "-r /src/requirements/production.txt" in block.text


def test_deployed_requirements_match_the_project_and_the_tested_versions() -> None:
    deployed, tested = pins("production"), pins("dev")
    assert deployed.items() <= tested.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
    assert {re.split(r"[^\w-]", each)[0] for each in needed} <= deployed.keys()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE))


async def test_backup_of_a_running_database_contains_its_queue_without_lock_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker without its lock file is considered dead only after that time.
    monkeypatch.setattr(presence, "MISSING_PATIENCE", 0.0)
    backup = unit(named("ini", step="sqlite")[1])["Service"]["ExecStart"]
    (statement,) = re.findall(r'"(VACUUM INTO .*)"', backup)
    (tmp_path / "original").mkdir()
    (tmp_path / "restored").mkdir()
    clock = FakeClock()
    async with open_harness(tmp_path / "original", clock) as harness:
        queue = await harness.queue()
        worker = await acting.start(harness, queue)
        await queue.publish([acting.message("claimed")])
        await acting.fetch_one(worker)
        await queue.publish([acting.message("waiting")])
        with closing(sqlite3.connect(tmp_path / "original" / "queue.db")) as file:
            file.execute(re.sub(r"'.*'", f"'{tmp_path}/new.db'", statement))
    async with open_harness(tmp_path / "restored", clock) as harness:
        (tmp_path / "new.db").replace(tmp_path / "restored" / "queue.db")
        worker = await acting.consumer(await harness.queue())
        assert await worker.recover() == 1
        assert sorted(await acting.drain(worker)) == ["claimed", "waiting"]


async def test_documented_role_and_database_suffice_to_migrate_and_run(tmp_path: Path) -> None:
    server = postgres_servers.shared()
    (block,) = named("sql", step="postgresql")
    statements = [each.strip() for each in block.text.split(";") if each.strip()]
    secret = re.findall(r"PASSWORD '(.*)'", block.text)[0]
    try:
        for each in statements:
            await server.execute(each)
        url = server.url("beneath", user="beneath", password=secret)
        db = Database(url)
        await db.open()
        assert await upgrade(db, HISTORIES) != []
        await db.close()
        settings = Settings(
            db=DbSettings(url=Url(url)), control=ControlSettings(port=0), mail=MailSettings(folder=tmp_path / "mail")
        )
        container, handled = with_listener(settings)
        async with Application(container).running("all") as running:
            await running.services.user.create(email="ada@example.com", name="Ada")
            await asyncio.wait_for(handled.wait(), 10)
    finally:
        await server.execute("DROP DATABASE IF EXISTS beneath WITH (FORCE)")
        await server.execute("DROP ROLE IF EXISTS beneath")


def with_listener(settings: Settings) -> tuple[Container, asyncio.Event]:
    """Return a container whose bus has the async listener `probe.record`, and the event that it sets."""
    container, handled = Container(settings=settings), asyncio.Event()

    async def record(event: UserCreated) -> None:
        handled.set()

    container.infra.bus().add_async_listener(record, name="probe.record")
    return container, handled


def options(block: Block) -> Iterator[str]:
    """Turn the lines of a configuration into arguments of the server."""
    for line in block.text.splitlines():
        name, *values = shlex.split(line)
        yield from (f"--{name}", *values)


async def test_application_works_with_the_documented_permissions(tmp_path: Path) -> None:
    (block,) = named("text", file="valkey.conf")
    server = servers.new_server(servers.any_kind(), *options(block))
    (variables,) = named("env", step="redis")
    given = RedisAddress.parse(environment(variables)["BENEATH_MQ_REDIS_URL"]).options
    settings = Settings(
        db=DbSettings(url=Url(f"sqlite:///{tmp_path}/beneath.db")),
        mq=MqSettings(
            driver="redis",
            redis=RedisSettings(
                url=Url(f"redis://{given['username']}:{given['password']}@127.0.0.1:{server.port}/{given['db']}")
            ),
        ),
        control=ControlSettings(port=0),
        mail=MailSettings(folder=tmp_path / "mail"),
    )
    with capture_logs() as lines:
        container, handled = with_listener(settings)
        async with Application(container).running("all") as running:
            await running.services.user.create(email="ada@example.com", name="Ada")
            await asyncio.wait_for(handled.wait(), 10)
            name = "probe.record"
            mq = running.container.infra.mq()
            await mq.pause(name)
            await mq.resume(name)
            assert name in {each.name for each in await mq.stats()}
            assert await mq.dead_letters() == []
    assert [each for each in lines if each["log_level"] not in {"debug", "info"}] == []
    (password,) = re.findall(r"user admin on >(\S+)", block.text)
    with Redis(port=server.port, username="admin", password=password) as admin:
        assert admin.acl_log() == []


def test_documented_url_options_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", _section("PostgreSQL"), flags=re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    address = ROOT / "infra" / "db" / "postgresql_url.py"
    known = set(re.findall(r'"(\w+)"', "".join(re.findall(r"frozenset\(\{(.*?)\}\)", address.read_text()))))
    assert told == known


def test_documented_connection_count_matches_the_code() -> None:
    told = f"{QUEUE_CONNECTIONS} for the queue: {SIZE} for requests, one for notifications, and in a worker one"
    assert told in _section("PostgreSQL").replace("\n", " ")
    assert QUEUE_CONNECTIONS == SIZE + 2


def test_documented_metrics_are_exported() -> None:
    described = (ROOT / "docs" / "operations.md").read_text()
    for name in re.findall(r"`(beneath_(?:bus|queue|listener|event|outbox)_\w+)`", _section("What to monitor")):
        assert f"| `{name}` |" in described or name == "beneath_outbox", name


def test_documented_url_encodings_of_password_characters_are_correct() -> None:
    (pairs,) = re.findall(r"write (.*?) as (.*?)\. Three", _section("PostgreSQL").replace("\n", " "))
    plain, quoted = (re.findall(r"`(.*?)`", each) for each in pairs)
    assert [unquote(each) for each in quoted] == plain


def _section(title: str) -> str:
    _, heading, rest = DEPLOY.read_text().partition(f"\n## {title}\n")
    assert heading, title
    return rest.partition("\n## ")[0]
