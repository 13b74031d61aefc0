"""Settings: sources and their precedence, parsing, and errors."""

import re
from pathlib import Path

import pytest
import yaml

from dependencies.errors import SettingsError
from dependencies.section import Section, Url
from dependencies.settings import (
    ControlSettings,
    DbSettings,
    FrameworkSettings,
    LogSettings,
    MailSettings,
    MqSettings,
    RedisSettings,
    Settings,
)
from dependencies.sources import load_settings, variable, walk_leaves
from dependencies.template import in_force, render_template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "config"


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_without_any_source_the_defaults_hold(folder: Path) -> None:
    settings = load_settings(environ={}, folder=folder)
    assert settings == Settings()
    assert settings.db.url.get_secret_value() == "sqlite:///./data/beneath.db"
    assert (settings.control.host, settings.control.port, settings.worker.port) == ("127.0.0.1", 4000, 4001)
    assert (settings.env, settings.mq.driver) == ("development", "sql")


def test_later_sources_override_single_values(folder: Path, tmp_path: Path) -> None:
    write(folder, ".default.yaml", "control: {host: a, port: 1}\nworker: {port: 10, concurrency: 1, prefetch: 1}\n")
    write(folder, ".test.yaml", "control: {port: 2}\nworker: {concurrency: 2}\n")
    write(folder, ".production.yaml", "control: {port: 9}\n")
    given = write(tmp_path, "given.yaml", "worker: {concurrency: 3, prefetch: 3}\n")
    environ = {"BENEATH_ENV": "test", "BENEATH_WORKER_PREFETCH": "4", "BENEATH_LOG_LEVEL": "debug"}
    settings = load_settings(environ=environ, folder=folder, file=given, overrides=["log.level=error"])
    assert (settings.control.host, settings.control.port) == ("a", 2)
    assert (settings.worker.port, settings.worker.concurrency, settings.worker.prefetch) == (10, 3, 4)
    assert (settings.env, settings.log.level) == ("test", "error")


def test_settings_folder_is_searched_in_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, ".default.yaml", "control: {port: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).control.port == 7


def test_variables_reach_nested_keys_and_keys_with_underscores(folder: Path) -> None:
    environ = {
        "BENEATH_MQ_REDIS_URL": "redis://elsewhere",
        "BENEATH_WORKER_RECOVER_EVERY": "4",
        "BENEATH_WORKER_TIMEOUT": "null",
        "OTHER": "x",
    }
    settings = load_settings(environ=environ, folder=folder)
    assert settings.mq.redis.url.get_secret_value() == "redis://elsewhere"
    assert (settings.worker.recover_every, settings.worker.timeout) == (4.0, None)


AROUND = ["\n", "\r", "\r\n", " ", "\t", "\v", "\f", "\ufeff", "\u00a0", "\u200b"]


@pytest.mark.parametrize("around", AROUND, ids=ascii)
def test_line_ends_blanks_and_byte_order_marks_around_a_value_are_removed(
    folder: Path, tmp_path: Path, around: str
) -> None:
    wanted = {
        "db.url": "sqlite:///a.db",
        "mq.redis.url": "redis://elsewhere",
        "mail.folder": "letters",
        "mail.smtp_url": "smtp://mail",
        "control.host": "::1",
        "control.port": "7",
        "log.level": "error",
        "env": "test",
    }
    padded = {key: f"{around}{value}{around}" for key, value in wanted.items()}
    environ = {variable(tuple(key.split("."))): value for key, value in padded.items()}
    without_env = [(key, value) for key, value in padded.items() if key != "env"]
    document: dict[str, dict[str, object]] = {}
    for key, value in without_env:
        section, _, name = key.partition(".")
        document.setdefault(section, {})[name] = {"url": value} if name == "redis.url" else value
    document["mq"] = {"redis": {"url": padded["mq.redis.url"]}}
    write(folder, ".test.yaml", yaml.safe_dump(document))
    sources = (
        load_settings(environ=environ, folder=tmp_path),
        load_settings(environ={}, folder=tmp_path, overrides=[f"{key}={value}" for key, value in padded.items()]),
        load_settings(environ={"BENEATH_ENV": f"{around}test"}, folder=folder),
        Settings(
            env="test",
            db=DbSettings(url=Url(padded["db.url"])),
            mq=MqSettings(redis=RedisSettings(url=Url(padded["mq.redis.url"]))),
            mail=MailSettings(folder=Path(wanted["mail.folder"]), smtp_url=Url(padded["mail.smtp_url"])),
            control=ControlSettings(host=padded["control.host"], port=7),
            log=LogSettings(level="error"),
        ),
    )
    for settings in sources:
        assert settings.db.url.get_secret_value() == wanted["db.url"]
        assert settings.mq.redis.url.get_secret_value() == wanted["mq.redis.url"]
        assert settings.mail.smtp_url is not None
        assert settings.mail.smtp_url.get_secret_value() == wanted["mail.smtp_url"]
        assert (str(settings.mail.folder), settings.control.host, settings.control.port) == ("letters", "::1", 7)
        assert (settings.log.level, settings.env) == ("error", "test")


@pytest.mark.parametrize("value", ["", " \n", "null", " null\r"])
def test_an_empty_value_of_an_optional_setting_is_none(folder: Path, value: str) -> None:
    assert load_settings(environ={"BENEATH_MAIL_SMTP_URL": value}, folder=folder).mail.smtp_url is None
    write(folder, ".default.yaml", "mail: {smtp_url: ' '}\n")
    assert load_settings(environ={}, folder=folder).mail.smtp_url is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_file_with_byte_order_mark_and_carriage_returns_is_read(folder: Path, encoding: str) -> None:
    folder.mkdir()
    (folder / ".default.yaml").write_bytes("db:\r\n  url: sqlite:///a.db\r\n".encode(encoding))
    assert load_settings(environ={}, folder=folder).db.url.get_secret_value() == "sqlite:///a.db"


def test_home_folder_in_a_path_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load_settings(environ={"BENEATH_MAIL_FOLDER": "~/mail"}, folder=folder)
    assert settings.mail.folder == Path("/home/ada/mail")


def test_a_settings_folder_that_is_a_file_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("x")
    assert load_settings(environ={}, folder=tmp_path / "config") == Settings()


def test_no_two_settings_share_a_variable() -> None:
    names = [variable(key) for key, _ in walk_leaves(Settings)]
    assert len(names) == len(set(names))
    assert "BENEATH_MQ_REDIS_URL" in names


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BENEATH_MQ_DRIVR": "sql"}, "unknown environment variable BENEATH_MQ_DRIVR; did you mean BENEATH_MQ_DRIVER?"),
        (
            {"BENEATH_XYZZY": "1"},
            "unknown environment variable BENEATH_XYZZY; remove it, or find its name ",
        ),
        ({"beneath_db_url": "x"}, "unknown environment variable beneath_db_url; did you mean BENEATH_DB_URL?"),
        ({"BENEATH_DB_URL ": "x"}, "unknown environment variable BENEATH_DB_URL ; did you mean BENEATH_DB_URL?"),
        (
            {"BENEATH_MAIL_FOLDER": " "},
            "mail.folder: value is empty; remove the setting to use its default (environment",
        ),
        (
            {"BENEATH_MAIL_FOLDER": "~unknown-user/mail"},
            "mail.folder: value contains ~, but the home folder is unknown; write the absolute path",
        ),
        (
            {"BENEATH_CONTROL_HOST": "a\nb"},
            "control.host: value contains the unprintable character U+000A; remove it (",
        ),
        ({"BENEATH_DB_URL": "sqlite:///a\0b"}, "db.url: value contains the unprintable character U+0000; remove it ("),
        (
            {"BENEATH_DB_URL": "sqlite:///a\udcff"},
            "db.url: value contains the unprintable character U+DCFF; remove it (",
        ),
        (
            {"BENEATH_DB_URL": "'sqlite:///a'"},
            "db.url: value is in quotation marks, which would be part of it; remove them",
        ),
        ({"BENEATH_LOG_LEVEL": '"info"'}, "log.level: value is in quotation marks"),
        (
            {"BENEATH_MQ_DRIVER": "kafka"},
            "mq.driver: input should be 'sql', 'memory' or 'redis', not 'kafka' (environment variable BENEATH_MQ_",
        ),
        ({"BENEATH_ENV": "prod"}, "env: input should be 'development', 'test' or 'production', not 'prod' "),
        (
            {"BENEATH_CONTROL_PORT": ""},
            "control.port: value is empty; remove the setting to use its default (environment",
        ),
        ({"BENEATH_CONTROL_PORT": "70000"}, "control.port: input should be less than or equal to 65535, not '70000' "),
        ({"BENEATH_WORKER_GRACE": "inf"}, "worker.grace: "),
        ({"BENEATH_MAIL_SENDER": "nobody"}, "mail.sender: "),
        ({"BENEATH_MAIL_SMTP_URL": "http://x"}, "mail.smtp_url: not the URL of an SMTP server; use smtp://"),
        (
            {"BENEATH_DB_BUSY_TIMEOUT": "0"},
            "db.busy_timeout: input should be greater than 0, not '0' ",
        ),
        (
            {"BENEATH_CONTROL_TRUSTED_PROXIES": "[2026-13-45]"},
            "control.trusted_proxies: not valid YAML: month must be in 1..12; write a list as [first, second] (",
        ),
        (
            {"BENEATH_CONTROL_TRUSTED_PROXIES": "[" * 1000},
            "control.trusted_proxies: not valid YAML: nested too deeply; write a list as [first, second] (",
        ),
        (
            {"BENEATH_WORKER_RENEW": "9"},
            "worker.renew: 9 s is more than half of worker.lease, 10 s; lower worker.renew or raise worker.lease (",
        ),
    ],
)
def test_invalid_variable_is_named_in_one_line(folder: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match="^" + re.escape(message)) as caught:
        load_settings(environ=environ, folder=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mq:\n  drivr: sql\n", ", line 2: unknown setting mq.drivr; did you mean mq.driver?"),
        (
            "queue:\n  driver: sql\n",
            ", line 1: unknown setting queue; remove it, or find its name with `beneath config generate -`",
        ),
        ("mq: sql\n", ", line 1: mq is a section of settings, not a value; write each setting as `name: value`"),
        ("- mq\n", ", line 1: the file is a mapping of settings, not a value; write each setting as `name: value`"),
        ("control:\n  port: abc\n", "control.port: input should be a valid integer"),
        ("mq: [\n", ": not valid YAML: "),
        ("mq: \x00\n", ": not valid YAML: "),
        (
            "log:\n  level: info\n  level: debug\n",
            ", line 3: log.level is set twice in this file; remove one of the two",
        ),
        ("env: test\n", ", line 1: env selects the settings file, so no file can set it; use BENEATH_ENV"),
        ("? [a]\n: b\n", ", line 1: unknown setting []"),
        ("log: !!python/name:os.system\n", ", line 1: log is a section of settings"),
        (
            "mail:\n  sender: 2026-13-45\n",
            ", line 2: mail.sender is not a valid date or number; put text in quotation marks",
        ),
        ("log: {level: !!int abc}\n", ", line 1: log.level is not a valid date or number"),
        (f"control: {{port: {'9' * 6000}}}\n", ", line 1: control.port is not a valid date or number"),
        (
            "control: " + "{a: " * 1000,
            ": not valid YAML: nested too deeply; compare it with `beneath config generate -`",
        ),
        ("control: {port: true}\n", "control.port: expected a number or text, not true or false"),
    ],
)
def test_invalid_file_is_named_with_its_line(folder: Path, text: str, message: str) -> None:
    path = write(folder, ".default.yaml", text)
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        load_settings(environ={}, folder=folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("control.prt=1", "unknown setting control.prt (--set); did you mean control.port?"),
        ("control=1", "control is a section, not a setting (--set); set one of its settings, such as control.host"),
        ("control.port", "--set expects KEY=VALUE, such as --set log.level=debug, not 'control.port'"),
        ("control.port=x", "control.port: input should be a valid integer"),
    ],
)
def test_invalid_override_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match="^" + re.escape(message)):
        load_settings(environ={}, folder=folder, overrides=[override])


def test_error_of_two_settings_names_both_sources_and_no_other(folder: Path) -> None:
    write(folder, ".default.yaml", "worker:\n  concurrency: 4\n  lease: 5\n")
    with pytest.raises(SettingsError, match=r"^worker\.renew: 4 s is more than half of worker\.lease, 5 s; ") as caught:
        load_settings(environ={"BENEATH_WORKER_RENEW": "4", "BENEATH_WORKER_PREFETCH": "1"}, folder=folder)
    place = f"(environment variable BENEATH_WORKER_RENEW, {folder / '.default.yaml'}, line 3)"
    assert str(caught.value).endswith(place)


def test_default_that_contradicts_a_setting_names_its_source(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"^worker\.renew: 3 s is more than half of .*\(--set\)$"):
        load_settings(environ={}, folder=folder, overrides=["worker.lease=5"])


def test_explicitly_named_file_must_exist(folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nope.yaml"
    with pytest.raises(SettingsError, match=f"cannot read the settings file {missing}: No such file or directory"):
        load_settings(environ={}, folder=folder, file=missing)
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings(environ={}, folder=folder, file=tmp_path)


def test_an_empty_file_and_an_empty_section_change_nothing(folder: Path) -> None:
    write(folder, ".default.yaml", "")
    write(folder, ".development.yaml", "mq:\n  redis:\n")
    assert load_settings(environ={}, folder=folder) == Settings()


def test_invalid_secret_is_not_shown(folder: Path) -> None:
    write(folder, ".default.yaml", "db:\n  url: [hunter2]\n")
    with pytest.raises(SettingsError, match=r"db\.url") as caught:
        load_settings(environ={}, folder=folder)
    assert "hunter2" not in str(caught.value)


def test_passwords_are_never_shown() -> None:
    settings = Settings(db=DbSettings(url=Url("postgresql://ada:hunter2@db/app")))
    shown = repr(settings) + str(settings.db.url) + settings.model_dump_json() + str(dict(in_force(settings)))
    assert "hunter2" not in shown
    assert "postgresql://ada:**********@db/app" in settings.model_dump_json()
    assert settings.db.url.get_secret_value() == "postgresql://ada:hunter2@db/app"


def test_the_template_names_every_setting_and_changes_nothing(folder: Path) -> None:
    text = render_template()
    write(folder, ".default.yaml", text)
    assert load_settings(environ={}, folder=folder) == Settings()
    for key, _ in walk_leaves(Settings):
        if key != ("env",):
            assert f"({variable(key)})" in text


def test_the_template_uncommented_holds_the_defaults(folder: Path) -> None:
    lines = []
    for line in render_template().splitlines():
        bare = line.lstrip()
        is_setting = re.match(r"# [a-z_]+: ", bare) and not bare.startswith("# json")
        lines.append(line.replace("# ", "", 1) if is_setting and ": " in bare else line)
    write(folder, ".default.yaml", "\n".join(lines))
    assert yaml.safe_load("\n".join(lines))["worker"]["processes"] == 1
    assert load_settings(environ={}, folder=folder) == Settings()


def test_logs_are_json_in_production_unless_configured_otherwise() -> None:
    assert Settings().log_format == "console"
    assert Settings(env="production").log_format == "json"
    assert Settings(env="production", log=LogSettings(format="console")).log_format == "console"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().control.port = 1  # type: ignore[misc]


def test_trusted_proxies_are_addresses_and_networks() -> None:
    environ = {"BENEATH_CONTROL_TRUSTED_PROXIES": "[127.0.0.1, 10.0.0.0/8, 'fd00::/8']"}
    assert load_settings(environ=environ).control.trusted_proxies == ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize("value", ["[proxy.example.com]", "['*']", "[0.0.0.0/0]", "['::/0']", "[10.0.0.1/8]"])
def test_trusted_proxies_refuse_host_names_and_all_addresses(value: str) -> None:
    with pytest.raises(SettingsError, match=r"control\.trusted_proxies\.0: "):
        load_settings(environ={"BENEATH_CONTROL_TRUSTED_PROXIES": value})


def test_propagated_headers_are_names_of_the_applications_headers() -> None:
    assert load_settings(environ={"BENEATH_BUS_PROPAGATE": "[tenant, région]"}).bus.propagate == ["tenant", "région"]


@pytest.mark.parametrize("value", ["['']", "[beneath-x]", f"[{'é' * 101}]"])
def test_propagated_headers_refuse_names_that_the_bus_refuses(value: str) -> None:
    with pytest.raises(SettingsError, match=r"bus\.propagate\.0: "):
        load_settings(environ={"BENEATH_BUS_PROPAGATE": value})


def test_blanks_around_a_list_are_removed(folder: Path) -> None:
    environ = {"BENEATH_CONTROL_TRUSTED_PROXIES": "\ufeff\t[10.0.0.1]\r\n"}
    assert load_settings(environ=environ, folder=folder).control.trusted_proxies == ["10.0.0.1/32"]


def test_secret_that_parses_as_a_number_is_not_shown(folder: Path) -> None:
    write(folder, ".default.yaml", "db: {url: !!int hunter2}\n")
    with pytest.raises(SettingsError, match=r"line 1: db\.url is not a valid date or number") as caught:
        load_settings(environ={}, folder=folder)
    assert "hunter2" not in str(caught.value)


def test_password_in_the_url_of_a_service_is_secret() -> None:
    class Bank(Section):
        url: Url = Url("https://ada:hunter2@bank")

    class WithBank(FrameworkSettings):
        bank: Bank = Bank()

    assert "hunter2" in WithBank().secrets
