"""The logging configuration: one format for all lines, and masked secrets."""

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog

from infra.logging import LogFormat, _Handler, configure_logging, log_uncaught_errors, mask_output
from infra.masking import mask_text


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, before = list(root.handlers), root.level, structlog.get_config()
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_lines_of_libraries_have_the_same_format(stream: io.StringIO) -> None:
    configure_logging(log_format="json", stream=stream)
    structlog.get_logger("bus.worker").info("worker started", listeners=3)
    logging.getLogger("some.library").warning("took %s s", 5)
    ours, theirs = lines(stream)
    assert (ours["event"], ours["level"], ours["logger"], ours["listeners"]) == (
        "worker started",
        "info",
        "bus.worker",
        3,
    )
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("took 5 s", "warning", "some.library")
    assert ours["timestamp"].endswith("Z")
    assert theirs["timestamp"].endswith("Z")


def test_level_applies_to_own_and_library_log_lines(stream: io.StringIO) -> None:
    configure_logging(level="warning", log_format="json", stream=stream)
    structlog.get_logger("x").info("quiet")
    logging.getLogger("y").info("quiet")
    structlog.get_logger("x").error("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_libraries_log_warnings_and_errors_only(stream: io.StringIO) -> None:
    configure_logging(level="info", log_format="json", stream=stream)
    for name in ("sqlalchemy.engine.Engine", "alembic.runtime.migration", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).info("chatter")
    logging.getLogger("uvicorn.error").error("broken", extra={"color_message": "\x1b[1mbroken"})
    (line,) = lines(stream)
    assert line["event"] == "broken"
    assert "color_message" not in line


def test_lines_carry_the_context(stream: io.StringIO) -> None:
    def delivery(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**entry, "listener": "audit.record", "attempt": 2}

    configure_logging(log_format="json", stream=stream, context=[delivery])
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("ours")
        logging.getLogger("theirs").warning("theirs")
    for line in lines(stream):
        assert (line["request_id"], line["listener"], line["attempt"]) == ("r1", "audit.record", 2)


def test_second_configuration_replaces_the_first(stream: io.StringIO) -> None:
    configure_logging(log_format="json", stream=io.StringIO())
    configure_logging(log_format="json", stream=stream)
    logging.getLogger("x").warning("once")
    assert len(lines(stream)) == 1


def refuse(url: str) -> None:
    raise OSError(f"cannot reach {url}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_in_log_fields_are_masked(stream: io.StringIO, log_format: LogFormat) -> None:
    configure_logging(log_format=log_format, stream=stream)
    log = structlog.get_logger("x")
    url = "postgresql://ada:hunter2@db/app"
    log.info("a", password="hunter2", Authorization="hunter2", nested={"token": "hunter2", "urls": [url]})
    log.info("Bearer hunter2 for %s", url)
    logging.getLogger("y").warning("to %s", url, extra={"api_key": "hunter2"})
    try:
        refuse(url)
    except OSError:
        log.exception("failed")
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "cannot reach postgresql://ada:**********@db/app" in text
    assert "Traceback" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:p@ss@host/0", "redis://:**********@host/0"),
        ("redis://user:a/b@host", "redis://user:**********@host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("sqlite:///./data/beneath.db", "sqlite:///./data/beneath.db"),
        ("redis+sentinel://:pw@one:1,:pw@two:2/x", "redis+sentinel://:**********@two:2/x"),
        ("postgresql://db/app?user=ada&password=pw&x=1", "postgresql://db/app?user=ada&password=**********&x=1"),
        ("Authorization: bearer bnth_123", "Authorization: bearer **********"),
        ("mail ada@example.com at 10:30", "mail ada@example.com at 10:30"),
    ],
)
def test_secrets_in_text_are_masked(text: str, shown: str) -> None:
    assert mask_text(text) == shown


class Silent:
    """A value of user code whose `__str__` raises."""

    def __str__(self) -> str:
        raise ValueError("hunter2")


class Spoken:
    """A value of user code whose text contains a secret."""

    def __str__(self) -> str:
        return "to redis://:hunter2@host"

    __repr__ = __str__


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_in_values_of_any_type_are_masked(stream: io.StringIO, log_format: LogFormat) -> None:
    configure_logging(log_format=log_format, stream=stream)
    log = structlog.get_logger("x")
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    error = OSError("redis://:hunter2@host")
    url = "redis://:hunter2@host"
    log.info("a", error=error, spoken=Spoken(), spokens=[Spoken()], keys={url: 1, 2: url}, raw=url.encode())
    log.info("b", group=frozenset({url}), deep=[[[[url]]]], endless=endless, silent=Silent(), number=7, nothing=None)
    log.info("c", DSN={"Sentinel-Password": "hunter2", "X-Api-Key": "hunter2", "pwd": ["hunter2"]})
    text = stream.getvalue()
    assert text.count("\n") >= 3
    assert "hunter2" not in text
    assert "<Silent>" in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_known_secrets_are_masked_wherever_they_occur(stream: io.StringIO, log_format: LogFormat) -> None:
    configure_logging(log_format=log_format, stream=stream, secrets=["correct horse"])
    structlog.get_logger("x").info("said 'correct horse'", path="/correct%20horse")
    assert "horse" not in stream.getvalue()
    assert "horse" not in mask_output("correct horse")


def test_a_line_that_cannot_be_formatted_shows_no_value(stream: io.StringIO) -> None:
    configure_logging(log_format="json", stream=stream)
    (handler,) = (each for each in logging.getLogger().handlers if isinstance(each, _Handler))
    handler.handle(logging.LogRecord("y", logging.WARNING, __file__, 1, "%d", ("hunter2",), None))
    assert stream.getvalue() == "log line lost: logger=y error=TypeError\n"


def test_lines_to_a_closed_or_missing_stream_are_dropped(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream.close()
    for closed in (stream, None):
        monkeypatch.setattr("sys.stderr", closed)
        for log_format in ("json", "console"):
            configure_logging(log_format="json" if log_format == "json" else "console", stream=closed)
            structlog.get_logger("x").error("logged without a reader")
    assert capfd.readouterr() == ("", "")


def test_uncaught_error_of_a_thread_is_logged_and_masked(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    configure_logging(log_format="json", stream=stream)
    log_uncaught_errors()
    thread = threading.Thread(target=refuse, args=("redis://:hunter2@host",), name="import")
    thread.start()
    thread.join()
    (line,) = lines(stream)
    assert (line["event"], line["thread"], line["level"]) == ("thread failed", "import", "error")
    assert "OSError: cannot reach redis://:**********@host" in line["exception"]
