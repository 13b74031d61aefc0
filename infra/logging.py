"""Logs: structlog for our own lines, the same look for everybody else's, on one stream."""

import logging
import re
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

LogFormat = Literal["json", "console"]

MASK = "**********"
_SECRET_KEY = re.compile(r"password|passwd|secret|token|authorization|cookie|api_?key", re.IGNORECASE)
_SECRET_TEXT = (
    # Up to the last @: passwords may hold any character, and a list of hosts several of them.
    re.compile(r"(?<=://)(?P<keep>[^:/@\s]*:)\S+(?=@)"),
    re.compile(r"(?P<keep>[?&;](?:password|passwd|pwd|token|secret)=)[^&;\s]+", re.IGNORECASE),
    re.compile(r"(?P<keep>\bBearer )\S+", re.IGNORECASE),
)
# SQLAlchemy names the logger of a pool after its class, and ours is in infra.db.postgresql.
_QUIET = ("sqlalchemy", "aiosqlite", "asyncio", "alembic", "uvicorn", "infra.db.postgresql")


def configure_logging(
    *,
    level: str = "info",
    log_format: LogFormat = "console",
    stream: TextIO | None = None,
    context: Sequence[Processor] = (),
) -> None:
    """Send every log line of this process to `stream` (standard error unless given), from `level` up.

    Lines carry what `structlog.contextvars.bind_contextvars` bound, and what the processors in `context` add: that is
    how a line tells of which delivery it is. Values under secret-looking names, passwords in URLs and bearer tokens
    are masked. Calling it again replaces what was configured before.
    """
    stream = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        _drop_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=log_format == "json"),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(log_format, stream))
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    _route_libraries()


def _renderers(log_format: LogFormat, stream: TextIO) -> list[Processor]:
    render: Processor = _to_json
    if log_format == "console":
        # Plain tracebacks: those that show local variables show secrets.
        plain = structlog.dev.plain_traceback
        render = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return [drop, structlog.processors.format_exc_info, mask_secrets, render]


def _route_libraries() -> None:
    """Let libraries' loggers reach the root: no handlers of their own, and only what somebody should act on."""
    for name in (*_QUIET, "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def mask_secrets(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask what looks like a secret; a structlog processor."""
    for key, value in line.items():
        line[key] = MASK if _SECRET_KEY.search(key) else masked(value)
    return line


def masked(value: object) -> Any:  # noqa: ANN401 - whatever came in
    """Return `value` with passwords in URLs and bearer tokens masked, inside mappings and lists too."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        return {key: MASK if _SECRET_KEY.search(str(key)) else masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def mask_text(text: str) -> str:
    """Return `text` with passwords in URLs and bearer tokens masked."""
    for pattern in _SECRET_TEXT:
        text = pattern.sub(rf"\g<keep>{MASK}", text)
    return text


def _drop_colours(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    line.pop("color_message", None)  # uvicorn's copy of the message
    return line


def _to_json(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    return str(structlog.processors.JSONRenderer(default=str)(_logger, _method, dict(line)))
