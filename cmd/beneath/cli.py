"""The command line: parses and runs one command, and reports errors."""

import contextlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from beneath.commands import bus, config, migrate, user
from beneath.commands.context import ConfigOption, SetOption, SettingsOptions, fail, print_error
from beneath.commands.start import start
from beneath.errors import UsageError, shortage
from beneath.lifecycle import ExitRequested
from beneath.streams import flush_standard_streams, open_standard_streams

app = typer.Typer(
    name="beneath",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("start")(start)
app.add_typer(migrate.app, name="migrate")
app.add_typer(config.app, name="config")
app.add_typer(user.app, name="user")
app.add_typer(bus.app, name="bus")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: SetOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run and operate a modular monolith and its event bus."""
    context.obj = SettingsOptions(config, tuple(overrides or ()))
    if version:
        from dependencies.version import application_version

        typer.echo(application_version())
        raise typer.Exit


INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as in shells."""


def main() -> None:
    """Run the command line of this process."""
    code = INTERRUPTED
    with contextlib.suppress(KeyboardInterrupt):
        from infra.logging import log_uncaught_errors

        open_standard_streams()
        log_uncaught_errors()
        code = execute(sys.argv[1:])
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # otherwise Ctrl-C during the interpreter's exit prints a traceback
    sys.exit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; print errors on standard error."""
    try:
        _require_text(arguments)
        code = app(list(arguments), prog_name="beneath", standalone_mode=False)
        flush_standard_streams()
    except Exception as error:  # noqa: BLE001 - report() prints every error
        if isinstance(error.__cause__, KeyboardInterrupt):
            return INTERRUPTED  # Python 3.11 wraps one that is raised while a class is created
        return report(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def report(error: BaseException) -> int:
    """Print an error on standard error and return the exit code: 2 for invalid usage or settings, otherwise 1.

    An expected error is printed as one line, a bug with its traceback. Secrets are masked in both.
    """
    if isinstance(error, typer.TyperException):
        fail(error.format_message())
        return error.exit_code
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _output_is_closed():
        return 1
    if isinstance(error, OSError) and (reason := shortage(error)) is not None:
        fail(reason)
        return 1
    if isinstance(error, ExitRequested):
        fail(str(error))
        return error.code
    code = _expected(error)
    if code is None and (missing := _missing(error)) is not None:
        fail(f"the database lacks a table or column: {missing}; see `beneath migrate status`, or restore a backup")
        return 1
    if code is None:
        from infra.logging import mask_output

        print_error(mask_output("".join(traceback.format_exception(error)).rstrip()))
        return 1
    fail(str(error))
    return code


def _require_text(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for an argument with surrogates, which no database can store or search."""
    for number, argument in enumerate(arguments, 1):
        if any("\ud800" <= each <= "\udfff" for each in argument):
            encoding = "this locale's encoding, such as UTF-8"
            raise UsageError(f"argument {number} is not valid text in {encoding}; correct it: {argument!r}")


def _output_is_closed() -> bool:
    """Return whether the reader of standard output, such as `head`, has ended."""
    try:
        flush_standard_streams()
    except OSError:
        return True
    return bool(getattr(sys.stdout, "closed", False))


def _missing(error: BaseException) -> str | None:
    try:
        from infra.db.migrate import missing_object
    except Exception:  # noqa: BLE001 - see _expected
        return None
    return missing_object(error)


def _expected(error: BaseException) -> int | None:
    try:
        from bus import BackgroundTaskFailed, BusError
        from dependencies.errors import SetupError
        from infra.db import DatabaseError
        from infra.mq import QueueError
    except Exception:  # noqa: BLE001 - the imports fail if `error` comes from them; it is a bug then
        return None
    if isinstance(error, SetupError):
        return 2
    return 1 if isinstance(error, BackgroundTaskFailed | BusError | DatabaseError | QueueError) else None
