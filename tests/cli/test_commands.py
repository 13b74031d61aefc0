"""Every command: its results and its errors."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
import yaml

from beneath.commands.context import print_json
from beneath.commands.dead import _contents
from dependencies.version import application_version
from tests.cli.conftest import Beneath, refused


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["strat"], ["No such command 'strat'", "start"]),
        (["start"], ["Missing argument 'NAME...'"]),
        (["start", "contrl-server"], ["no startable 'contrl-server'; did you mean control-server?", "control-worker"]),
        (["--config", "nope.yaml", "start", "all"], ["cannot read the settings file nope.yaml: No such file"]),
        (["start", "--config", "nope.yaml", "all"], ["cannot read the settings file nope.yaml: No such file"]),
        (["--set", "mq.drivr=sql", "config", "show"], ["unknown setting mq.drivr", "did you mean mq.driver?"]),
        (["--set", "control.port=x", "start", "all"], ["control.port: input should be a valid integer"]),
        (["start", "--set", "mq.driver=memory", "control-worker"], ["mq.driver=memory", "run `beneath start all`"]),
        (["start", "--set", "mq.driver=memory", "control-server"], ["mq.driver=memory", "run `beneath start all`"]),
        (
            ["start", "--set", "mq.driver=memory", "--set", "worker.processes=2", "all"],
            ["mq.driver=memory", "worker.processes=1"],
        ),
        (["--set", "mq.driver=memory", "bus", "stats"], ["mq.driver=memory keeps the queue inside one process"]),
        (
            ["--set", "mq.driver=memory", "bus", "publish", "X", "{}"],
            ["mq.driver=memory keeps the queue inside one process"],
        ),
        (["bus", "dead", "lst"], ["No such command 'lst'"]),
        (["bus", "retire", "x", "--backlog", "keep"], ["--backlog", "'refuse', 'discard', 'dead'"]),
        (["bus", "explain", "UserUpdatd"], ["no listener has an event 'UserUpdatd'; did you mean UserUpdated?"]),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(
    beneath: Beneath, folder: Path, arguments: list[str], parts: list[str]
) -> None:
    refused(beneath(*arguments), *parts)
    assert list(folder.iterdir()) == []


def test_help_and_version(beneath: Beneath) -> None:
    shown = beneath("--help")
    assert shown.code == 0
    assert all(name in shown.out for name in ("start", "migrate", "config", "user", "bus"))
    assert beneath("--version").out == f"{application_version()}\n"


def test_unexpected_error_shows_its_traceback(beneath: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dependencies.template.render_template", broken)
    result = beneath("config", "generate", "-")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "ZeroDivisionError: a bug" in result.err


# --- config -----------------------------------------------------------------------------------------------------------


def test_config_generate_writes_a_file_that_changes_nothing(beneath: Beneath, folder: Path) -> None:
    before = beneath("config", "show", "--json").out
    (folder / "config").mkdir()
    assert beneath("config", "generate", "config/.default.yaml").code == 0
    assert "driver: sql" in (folder / "config/.default.yaml").read_text()
    assert beneath("config", "show", "--json").out == before
    refused(beneath("config", "generate", "config/.default.yaml"), "exists already; replace it with --force")
    assert beneath("config", "generate", "config/.default.yaml", "--force").code == 0
    refused(beneath("config", "generate", "no/such/folder.yaml"), "cannot write no/such/folder.yaml: No such file")
    assert yaml.safe_load(beneath("config", "generate", "-").out)["mq"] == {"redis": None}


def test_config_show_masks_secrets(beneath: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENEATH_DB_URL", "postgresql://ada:hunter2@db/app")
    shown, as_json = beneath("config", "show").out, beneath("config", "show", "--json").out
    assert "hunter2" not in shown + as_json
    assert "postgresql://ada:**********@db/app" in shown
    assert json.loads(as_json)["mq"]["driver"] == "sql"
    assert ["control.port", "4000", "BENEATH_CONTROL_PORT"] in [line.split() for line in shown.splitlines()]


# --- migrate and the database -----------------------------------------------------------------------------------------


def test_migrate_up_then_status(beneath: Beneath) -> None:
    before = json.loads(beneath("migrate", "status", "--json").out)
    assert all(each["pending"] for each in before)
    applied = beneath("migrate", "up")
    assert applied.code == 0
    assert "applied bus/0001" in applied.out
    assert beneath("migrate", "up").out == "no migration is pending\n"
    after = json.loads(beneath("migrate", "status", "--json").out)
    assert [(each["history"], each["pending"]) for each in after] == [("bus", []), ("app", [])]


def test_migrate_new_needs_a_current_database_a_message_and_a_difference(beneath: Beneath) -> None:
    refused(beneath("migrate", "new", "Add invoices"), "bus/0001", "run `beneath migrate up`", code=1)
    beneath("migrate", "up")
    refused(beneath("migrate", "new", "..."), "'...' cannot be the summary of a migration", code=2)
    assert "there is nothing to migrate" in beneath("migrate", "new", "Add invoices").out


def test_pending_migrations_are_refused_outside_development(beneath: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENEATH_ENV", "production")
    refused(beneath("bus", "stats"), "bus/0001", "run `beneath migrate up`", code=1)


def test_a_newer_database_is_refused(beneath: Beneath, folder: Path) -> None:
    beneath("migrate", "up")
    with closing(sqlite3.connect(folder / "data/beneath.db")) as connection, connection:
        connection.execute("UPDATE beneath_app_version SET version_num = '9999'")
    connection.close()
    for command in (["migrate", "up"], ["bus", "stats"], ["user", "create", "ada@example.com"]):
        refused(beneath(*command), "newer than this code", "app/9999", code=1)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("sqlite:///./broken.db", "broken.db is not a SQLite database"),
        ("sqlite:///./broken.db/x.db", "cannot create the folder"),
        ("nonsense", "db.url is not a database URL"),
        ("mysql://u:hunter2@h/x", "db.url: 'mysql' is not supported"),
    ],
)
def test_unusable_database_is_refused(beneath: Beneath, folder: Path, url: str, part: str) -> None:
    (folder / "broken.db").write_bytes(b"no database " * 1000)
    result = beneath("--set", f"db.url={url}", "bus", "stats")
    refused(result, part, code=1)
    assert "hunter2" not in result.err


# --- listeners and events ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ("{", "are not valid JSON"),
        ("[]", 'must be a JSON object, like {"user_id": ..., "email": ..., "name": ...}'),
        ('{"user": 1}', "UserUpdated has no field 'user'"),
        ('{"user_id": "x", "email": "a@b.co", "name": "A"}', "UserUpdated: Invalid UUID"),
        ("{}", "UserUpdated: Object missing required field `user_id`"),
    ],
)
def test_publish_refuses_fields_that_do_not_match_the_event(
    beneath: Beneath, folder: Path, fields: str, part: str
) -> None:
    refused(beneath("bus", "publish", "UserUpdated", fields), part)
    refused(beneath("bus", "publish", "UserUpdatd", fields), "did you mean UserUpdated?")
    assert list(folder.iterdir()) == []


def test_publish_refuses_an_invalid_lifetime(beneath: Beneath) -> None:
    fields = json.dumps({"user_id": "01890a5d-ac96-774b-bcce-b302099a8057", "email": "a@b.co", "name": "A"})
    refused(
        beneath("bus", "publish", "UserUpdated", fields, "--expires-in", "0"), "expires_in (in seconds) must be", code=1
    )
    assert beneath("bus", "publish", "UserUpdated", fields, "--expires-in", "60").out == "published UserUpdated\n"


# --- users, the queue and its operations ------------------------------------------------------------------------------


def test_rejected_outbox_rows_are_listed_retried_and_discarded(beneath: Beneath, folder: Path) -> None:
    assert beneath("bus", "outbox", "list").err == "no rejected rows\n"
    [database] = folder.rglob("*.db")
    with closing(sqlite3.connect(database)) as connection, connection:
        for id_, kind, body in (
            (1, "rejected", b"x"),
            (2, "rejected", b"x"),
            (3, "rejected", b""),
            (4, "publish", b"x"),
        ):
            connection.execute(
                "INSERT INTO beneath_outbox (id, kind, message_id, event, published_at, created_at, body, error) "
                "VALUES (?, ?, 'm', 'UserUpdated', 1.0, 1.0, ?, 'QueueRejected: too large')",
                (id_, kind, body),
            )
    rows = json.loads(beneath("bus", "outbox", "list", "--json").out)
    assert [(each["row"], each["error"]) for each in rows] == [(n, "QueueRejected: too large") for n in (1, 2, 3)]
    assert [each["row"] for each in json.loads(beneath("bus", "outbox", "list", "--after", "1", "--json").out)] == [
        2,
        3,
    ]
    assert "too large" in beneath("bus", "outbox", "list").out

    refused(beneath("bus", "outbox", "retry"), "select rejected rows by their numbers")
    refused(beneath("bus", "outbox", "discard", "1", "--all"), "select rejected rows by their numbers")
    refused(
        beneath("bus", "outbox", "retry", "1", "4"), "there is no rejected row 4, so nothing was changed; list them"
    )
    assert beneath("bus", "outbox", "retry", "1", "3").out == "retried 2\n"
    assert beneath("bus", "outbox", "discard", "--all").out == "discarded 1\n"
    with closing(sqlite3.connect(database)) as connection:
        left = connection.execute("SELECT id, kind, error FROM beneath_outbox ORDER BY id").fetchall()
    assert left == [(1, "publish", None), (3, "cancel", None), (4, "publish", "QueueRejected: too large")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bus", "publish", "UserUpdated", "\udcff"],
        ["bus", "dead", "list", "--listener", "\udcff"],
        ["bus", "pause", "a\udcff"],
        ["user", "create", "\udcff@example.com"],
        ["--set", "log.level=\udcff", "bus", "stats"],
    ],
)
def test_argument_that_is_not_valid_text_is_refused(beneath: Beneath, arguments: list[str]) -> None:
    refused(beneath(*arguments), "is not valid text in this locale's encoding")


@pytest.mark.parametrize("fields", ["[" * 100_000, '{"a":' * 50_000])
def test_deeply_nested_fields_are_refused(beneath: Beneath, fields: str) -> None:
    refused(beneath("bus", "publish", "UserUpdated", fields), "the fields of UserUpdated are not valid JSON")


@pytest.mark.parametrize("command", [["retry"], ["discard"], ["list", "--after"]])
@pytest.mark.parametrize("number", ["-1", str(2**63)])
def test_outbox_row_number_out_of_range_is_refused(beneath: Beneath, command: list[str], number: str) -> None:
    refused(beneath("bus", "outbox", *command, *(() if "--after" in command else ("--",)), number), "Input should be")


def test_missing_table_is_an_error_of_one_line(beneath: Beneath, folder: Path) -> None:
    assert beneath("migrate", "up").code == 0
    with closing(sqlite3.connect(folder / "data" / "beneath.db")) as connection:
        connection.executescript("DROP TABLE users; DROP TABLE beneath_outbox")
    refused(beneath("user", "create", "ada@example.com"), "lacks a table or column: no such table: users", code=1)
    refused(beneath("bus", "outbox", "list"), "no such table: beneath_outbox; see `beneath migrate status`", code=1)


@pytest.mark.parametrize("command", ["up", "status"])
def test_foreign_version_table_is_an_error_of_one_line(beneath: Beneath, folder: Path, command: str) -> None:
    assert beneath("migrate", "up").code == 0
    with closing(sqlite3.connect(folder / "data" / "beneath.db")) as connection:
        connection.executescript("DROP TABLE beneath_bus_version; CREATE TABLE beneath_bus_version (other INTEGER)")
    refused(beneath("migrate", command), "cannot read which migrations the database has: no such column", code=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x81\xc4\x01a\x01",  # The keys are bytes, a time and a list.
        b"\x81\xd6\xff\x00\x00\x00\x01\x01",
        b"\x81\x91\x01\x01",
        b"\xd7\xff\x00\x00\x00\x03\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\x00" * 4 + b"\x7f" + b"\xff" * 7,  # The time is after the year 9999.
        b"\x91" * 900 + b"\x01",
        b"\xc1",
    ],
)
def test_dead_letter_with_any_payload_is_shown(payload: bytes) -> None:
    print_json(_contents(msgpack.packb((1, "id", "event", 1, None, 1.0, {}, payload))))
