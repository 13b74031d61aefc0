"""Logging: lines of structlog and of the standard library, masked, in one format on one stream."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

from infra.masking import MASK, Masker, is_secret_name, mask_text

LogFormat = Literal["json", "console"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# SQLAlchemy names the logger of a pool after its class, and ours is in infra.db.postgresql.
_QUIET = ("sqlalchemy", "asyncio", "alembic", "uvicorn", "infra.db.postgresql")


def configure_logging(
    *,
    level: str = "info",
    log_format: LogFormat = "console",
    stream: TextIO | None = None,
    context: Sequence[Processor] = (),
    secrets: Iterable[str] = (),
) -> None:
    """Send all log lines of this process from `level` up to `stream`, by default standard error.

    Lines have the fields bound with `structlog.contextvars.bind_contextvars` and those that the processors in `context`
    add, such as the ids of the current delivery. Values under secret-looking names, passwords in URLs, bearer tokens,
    and `secrets` wherever they occur are masked. A second call replaces the configuration of the first. Without a
    stream, as in a process whose standard error is closed, lines are dropped.
    """
    stream = sys.stderr if stream is None else stream
    masker = Masker(secrets)
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
    handler = _Handler(stream, masker)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(log_format, stream, masker))
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    _route_libraries()


def mask_output(text: str) -> str:
    """Return `text` masked as log lines are, for output to people."""
    for each in logging.getLogger().handlers:
        if isinstance(each, _Handler):
            return each.masker(text)
    return mask_text(text)


def log_uncaught_errors() -> None:
    """Log uncaught errors of threads and finalizers, which the interpreter would print unmasked."""

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit or args.exc_value is None:
            return
        name = "?" if args.thread is None else args.thread.name
        _log.error("thread failed", thread=name, exc_info=args.exc_value)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        _log.error("error ignored", where=type(args.object).__qualname__, exc_info=args.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


class _Handler(logging.StreamHandler[TextIO]):
    """A handler that reports a line it cannot format or write without the line's values, which are not masked yet."""

    def __init__(self, stream: TextIO | None, masker: Masker) -> None:
        super().__init__(stream)
        self.masker = masker

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        # The standard library would print the line's arguments, unmasked, and a traceback.
        error = sys.exc_info()[1]
        with contextlib.suppress(Exception):  # such as a closed stream: the loss cannot be reported
            self.stream.write(f"log line lost: logger={record.name} error={type(error).__name__}{self.terminator}")
            self.flush()


class _Masking:
    """A structlog processor that masks every value of a line, also inside collections and objects."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker

    def __call__(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in line.items():
            line[key] = MASK if is_secret_name(key) else self._masked(value, 0)
        return line

    def _masked(self, value: object, depth: int) -> object:
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self._masker(value)
            case bytes() | bytearray():
                return self._masker(bytes(value).decode(errors="backslashreplace"))
            case _ if depth >= _DEEPEST:
                return "..."
            case Mapping():
                return {
                    self._masker(_text(key)): MASK if is_secret_name(_text(key)) else self._masked(item, depth + 1)
                    for key, item in value.items()
                }
            case list() | tuple() | AbstractSet():
                return [self._masked(item, depth + 1) for item in value]
            case _:
                # The renderer would convert the object to text after the masking.
                return self._masker(_text(value))


_DEEPEST = 8
"""Depth of nested collections that a line shows."""


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - `__str__` may be user code; its error must not lose the line
        return f"<{type(value).__name__}>"


def _renderers(log_format: LogFormat, stream: TextIO | None, masker: Masker) -> list[Processor]:
    render: Processor = _to_json
    if log_format == "console":
        # Plain tracebacks, since local variables may hold secrets.
        plain = structlog.dev.plain_traceback
        render = structlog.dev.ConsoleRenderer(colors=_is_terminal(stream), exception_formatter=plain)
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return [drop, structlog.processors.format_exc_info, _Masking(masker), render]


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _route_libraries() -> None:
    """Send libraries' log lines to the root logger alone; of the quiet libraries, only warnings and errors."""
    for name in (*_QUIET, "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _drop_colours(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    line.pop("color_message", None)  # a second copy of uvicorn's message
    return line


def _to_json(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    return str(structlog.processors.JSONRenderer(default=str)(_logger, _method, dict(line)))
