"""The parts that all commands share: options, settings, container, the opened queue, and output."""

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from dependencies import Container, Settings
    from infra.mq import MessageQueue

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Another settings file, which overrides those in config/."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class SettingsOptions:
    """The options `--config` and `--set` of a command line."""

    file: Path | None = None
    overrides: tuple[str, ...] = ()

    def joined(self, file: Path | None, overrides: Sequence[str] | None) -> "SettingsOptions":
        """Return these options, overridden by those of a subcommand."""
        return SettingsOptions(file or self.file, (*self.overrides, *(overrides or ())))

    def arguments(self) -> tuple[str, ...]:
        """Return the arguments that give another process the same settings."""
        file = ("--config", str(self.file)) if self.file else ()
        return (*file, *(part for each in self.overrides for part in ("--set", each)))


def options_of(context: typer.Context) -> SettingsOptions:
    """Return the options that stand before the command's name."""
    return context.obj if isinstance(context.obj, SettingsOptions) else SettingsOptions()


def settings_of(options: SettingsOptions) -> "Settings":
    """Load the settings and configure logging by them."""
    from bus import log_context
    from dependencies import load_settings
    from infra.logging import configure_logging

    settings = load_settings(file=options.file, overrides=options.overrides)
    configure_logging(
        level=settings.log.level, log_format=settings.log_format, context=[log_context], secrets=settings.secrets
    )
    return settings


def container_of(context: typer.Context) -> "Container":
    """Return the container for a short command; log level `info` is raised to `warning`."""
    from dependencies import Container

    options = options_of(context)
    settings = settings_of(options)
    if settings.log.level == "info":
        settings = settings_of(options.joined(None, ["log.level=warning"]))
    return Container(settings=settings)


def shared_queue(container: "Container") -> None:
    """Require a queue that several processes can open; with another, a command would open an empty queue of its own.

    Raises:
        UsageError: the queue exists in one process only.
    """
    from beneath.errors import UsageError

    if not container.infra.mq().features.multi_process:
        driver = container.settings().mq.driver
        raise UsageError(
            f"mq.driver={driver} keeps the queue inside one process, so commands cannot reach it; set mq.driver=sql"
        )


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine in a new event loop."""
    return asyncio.run(coroutine)


def in_queue(context: typer.Context, work: "Callable[[MessageQueue], Awaitable[T]]") -> T:
    """Run `work` with the opened queue, without constructing services."""
    container = container_of(context)
    shared_queue(container)

    async def opened() -> T:
        from beneath.application import open_queue

        async with open_queue(container) as mq:
            return await work(mq)

    return run(opened())


def print_json(value: object) -> None:
    """Print `value` as JSON; values of other types become text, and unprintable characters escapes."""
    value = _plain(value)
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    typer.echo("".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text))


DEEPEST = 200
"""Levels of a nested value that are printed; deeper ones become `...`."""


def _plain(value: object, depth: int = 0) -> object:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping() if depth < DEEPEST:
            return {str(key): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple() if depth < DEEPEST:
            return [_plain(item, depth + 1) for item in value]
        case Mapping() | list() | tuple():
            return "..."
        case _:
            return str(value)


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, empty: str) -> None:
    """Print rows under headings, numbers aligned right; without rows print `empty` on standard error."""
    table = [[row.get(column) for column in columns] for row in rows]
    if not table:
        typer.echo(empty, err=True)
        return
    head = [column.replace("_", " ").upper() for column in columns]
    cells = [head, *([_cell(each) for each in row] for row in table)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    numeric = [all(isinstance(row[index], int | float | None) for row in table) for index in range(len(columns))]
    for row in cells:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if value is None or value is False:
        return "-"
    if value is True:
        return "yes"
    if isinstance(value, float):
        return f"{value:.1f}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return printable(" ".join(text.split())) or "-"


def printable(text: str) -> str:
    """Return `text` with control characters escaped, which a terminal would execute."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def fail(message: str) -> None:
    """Print an error as one line on standard error, with secrets masked."""
    from infra.logging import mask_output

    print_error(f"beneath: {printable(' '.join(mask_output(message).split()))}")


def print_error(text: str) -> None:
    """Print `text` on standard error; drop it if standard error has no reader, such as a closed terminal."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(text, file=sys.stderr)
