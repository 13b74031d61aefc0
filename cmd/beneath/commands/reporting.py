"""Reports the error of a command on standard error, and chooses the exit code."""

import sys
import traceback

import typer

from beneath.commands.context import fail, print_error
from beneath.runtime.lifecycle import ExitRequested
from beneath.shortage import explain_shortage
from beneath.streams import flush_standard_streams

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as in shells."""


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
    if isinstance(error, OSError) and (reason := explain_shortage(error)) is not None:
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
