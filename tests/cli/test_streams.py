"""Standard streams of commands: closed, unread or with a limited encoding; and no secrets in the output."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from beneath.commands.context import print_json, printable
from beneath.commands.reporting import report
from beneath.errors import UsageError
from beneath.shortage import explain_shortage
from tests.cli.conftest import Beneath
from tests.cli.test_process import ROOT

PASSWORD = "correct horse"


def run(folder: Path, script: str, *, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `$BENEATH` is the command."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BENEATH_")}
    path = f"{ROOT}{os.pathsep}{ROOT / 'cmd'}"
    command = f"{sys.executable} -P -m beneath"
    return subprocess.run(  # noqa: S603 - our own script
        ["/bin/sh", "-c", script],
        cwd=folder,
        env={**inherited, "PYTHONPATH": path, "BENEATH": command, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.e2e
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_nothing(folder: Path, closed: str) -> None:
    done = run(folder, f"$BENEATH migrate up {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "data" / "beneath.db").read_bytes().startswith(b"SQLite format 3\0")
    assert run(folder, f"$BENEATH bus stats --json {closed}").returncode == 0


@pytest.mark.e2e
def test_closed_pipe_of_the_reader_is_no_error(folder: Path) -> None:
    done = run(folder, "{ $BENEATH config show; echo code $? >&2; } | true")
    assert done.stderr.splitlines() in (["code 0"], ["code 1"])


@pytest.mark.e2e
def test_characters_missing_from_the_output_encoding_are_escaped(folder: Path) -> None:
    environ = {"PYTHONIOENCODING": "ascii", "BENEATH_MAIL_SENDER": "Zoë <zoe@example.com>"}
    done = run(folder, "$BENEATH config show", environ=environ)
    assert done.returncode == 0, done.stderr
    assert "zoe@example.com" in done.stdout


@pytest.mark.e2e
def test_too_few_file_descriptors_are_an_error_of_one_line(folder: Path) -> None:
    assert run(folder, "$BENEATH migrate up").returncode == 0
    done = run(folder, "ulimit -n 6; exec $BENEATH bus stats")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no more than 6 files and connections; raise the limit" in line
    assert run(folder, "$BENEATH bus stats").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["config", "show"], {"BENEATH_DB_URL": "postgresql://me@corp.com:correct%20horse@db/app"}),
        (["config", "show", "--json"], {"BENEATH_MQ_REDIS_URL": f"redis://:{PASSWORD}@db/0"}),
        (["config", "show"], {"BENEATH_MQ_REDIS_URL": f"redis://db/0?pass%77ord={PASSWORD}"}),
        (["config", "show"], {"BENEATH_MAIL_SMTP_URL": "smtp://a%40b:correct%20horse@mail"}),
        (["config", "generate", "-"], {"BENEATH_DB_URL": f"postgresql://ada:{PASSWORD}@db/app"}),
        (["--set", f"db.url:postgresql://ada:{PASSWORD}@db/app", "config", "show"], {}),
        (["--set", "db.url", f"postgresql://ada:{PASSWORD}@db/app", "config", "show"], {}),
        (["--set", f"postgresql://ada:{PASSWORD}@db/app?a=b", "config", "show"], {}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"postgresql://ada:{PASSWORD}@sub@127.0.0.1:1/app"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"postgresql://ada:x@127.0.0.1:{PASSWORD}@db/app"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"mysql://ada:{PASSWORD}@db/app"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"{PASSWORD}"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"sqlite://ada:{PASSWORD}@db/app"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"postgresql://ada@db/app?{PASSWORD}=1"}),
        (["migrate", "up"], {"BENEATH_DB_URL": f"postgresql://ada@127.0.0.1:1/app?sslmode={PASSWORD}"}),
        (["bus", "stats"], {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": f"redis://:12/{PASSWORD}@db"}),
        (["bus", "stats"], {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": f"redis://:{PASSWORD}/@db"}),
        (["bus", "stats"], {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": f"redis://db/{PASSWORD}"}),
        (["bus", "stats"], {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": f"redis://db?db={PASSWORD}"}),
        (["bus", "stats"], {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": f"{PASSWORD}"}),
        (["config", "show"], {"BENEATH_MAIL_SMTP_URL": f"smtp://ada:12/{PASSWORD}@mail"}),
        (["config", "show"], {"BENEATH_MAIL_SMTP_URL": f"smtp://ada:{PASSWORD}@mail?x=1"}),
    ],
)
def test_no_command_shows_a_password(
    beneath: Beneath, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    shown = beneath(*arguments)
    assert "Traceback" not in shown.err
    for piece in ("correct horse", "correct%20horse", "horse"):
        assert piece not in shown.out + shown.err


def test_a_traceback_shows_no_password(
    beneath: Beneath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENEATH_DB_URL", "postgresql://ada:correcthorse@db/app")
    monkeypatch.setenv("BENEATH_MQ_DRIVER", "memory")
    assert beneath("bus", "stats").code == 2  # The settings are loaded.
    error = RuntimeError("to postgresql://ada:correcthorse@db/app")
    error.__cause__ = ValueError("refused: correcthorse")
    assert report(error) == 1
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert "ValueError" in shown
    assert "correcthorse" not in shown


def test_terminal_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2Jb\u202ec é\n") == "a\\x1b[2Jb\\u202ec é\n"
    assert json.loads(json.dumps(printable("\ud800"))) == "\\ud800"


def test_json_output_is_valid_and_escaped_for_any_value(capsys: pytest.CaptureFixture[str]) -> None:
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    given = {b"\xff": float("nan"), 1: "\x9b2J\u202e\ud800😀é\n", datetime.now(UTC): {("a", 1)}, "deep": deep}
    print_json(given)
    shown = capsys.readouterr().out
    assert all(each.isprintable() or each == "\n" for each in shown)
    read = json.loads(shown, parse_constant=pytest.fail)
    assert read["1"] == "\x9b2J\u202e\ud800😀é\n"
    assert read["b'\\xff'"] == "nan"


@pytest.mark.e2e
@pytest.mark.parametrize("command", ["bus stats", "config generate x.yaml", "user create ada@example.com"])
def test_removed_working_directory_is_an_error_of_one_line(folder: Path, command: str) -> None:
    done = run(folder, f'mkdir gone && cd gone && rmdir "$PWD" && $BENEATH {command}')
    assert done.returncode in {1, 2}
    (line,) = done.stderr.splitlines()
    assert line.startswith("beneath: ")


@pytest.mark.e2e
def test_json_is_valid_in_every_encoding(folder: Path) -> None:
    environ = {"PYTHONIOENCODING": "ascii", "BENEATH_MAIL_SENDER": "Zoë 😀 <zoe@example.com>"}
    done = run(folder, "$BENEATH config show --json", environ=environ)
    assert json.loads(done.stdout)["mail"]["sender"] == "Zoë 😀 <zoe@example.com>"


def test_errors_to_a_closed_stream_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        assert report(UsageError("no")) == 2
        assert report(RuntimeError("no")) == 1
        with suppress(OSError):
            full.close()


@pytest.mark.parametrize("number", [11, 12, 23, 24, 28])
def test_exhausted_system_resources_are_explained(number: int) -> None:
    assert explain_shortage(OSError(number, os.strerror(number))) is not None
    assert explain_shortage(OSError(2, "No such file")) is None


def test_interrupt_before_the_command_runs_shows_no_traceback(
    beneath: Beneath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dependencies.load_settings", interrupted)
    shown = beneath("config", "show")
    assert (shown.code, shown.out, shown.err) == (130, "", "")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Reset SIGINT to its default, which background processes of a shell, and their children, ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.e2e
@pytest.mark.usefixtures("interruptible")
def test_interrupt_during_the_imports_shows_no_traceback(folder: Path) -> None:
    (folder / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
    environ = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}{os.pathsep}{ROOT / 'cmd'}"}
    done = run(folder, "$BENEATH config show; echo code $?", environ=environ)
    assert (done.stdout, done.stderr) == ("code 130\n", "")


def test_interrupt_wrapped_in_an_import_error_shows_no_traceback(
    beneath: Beneath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("dependencies.load_settings", interrupted)
    shown = beneath("config", "show")
    assert (shown.code, shown.out, shown.err) == (130, "", "")
