"""The standard streams: opened if the parent process closed them, and written without encoding errors."""

import contextlib
import io
import os
import sys

_STANDARD = (0, 1, 2)


def open_standard_streams() -> None:
    """Open the null device for each closed standard stream, and escape characters that their encoding lacks.

    Without that, the next opened file, such as the database, would get the file descriptor of a standard stream, and
    printed text would be written into it.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the same
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_standard_streams() -> None:
    """Flush standard output and standard error.

    Raises:
        BrokenPipeError: standard output has no reader any more. Later output is dropped.
        OSError: standard output cannot be written, for example on a full disk. Later output is dropped.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter would flush again at its exit, and print the error.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        raise


def _open_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:  # it got a lower number that was free too
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
