"""The command line: parses and runs one command."""

import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from beneath.commands import bus, config, migrate, user
from beneath.commands.context import ConfigOption, SetOption, SettingsOptions
from beneath.commands.reporting import INTERRUPTED, report
from beneath.commands.start import start
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


def _require_text(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for an argument with surrogates, which no database can store or search."""
    for number, argument in enumerate(arguments, 1):
        if any("\ud800" <= each <= "\udfff" for each in argument):
            from beneath.errors import UsageError

            encoding = "this locale's encoding, such as UTF-8"
            raise UsageError(f"argument {number} is not valid text in {encoding}; correct it: {argument!r}")
