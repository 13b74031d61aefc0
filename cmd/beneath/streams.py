"""The process's standard streams, which its parent may have closed or given a narrow encoding."""

import contextlib
import io
import os
import sys

_STANDARD = (0, 1, 2)


def open_standard_streams() -> None:
    """Open the null device in place of each closed standard stream, and let none of them fail for a character.

    Otherwise the next file to be opened, such as the database, would get the number of standard output or standard
    error, and be written to by whatever prints.
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
    """Write out what was printed.

    Raises:
        BrokenPipeError: standard output has no reader any more; what is printed from now on is dropped.
        OSError: it cannot be written, for example because a disk is full; the same holds.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter would try again at its end, and print that it failed.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        raise


def _open_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:  # a lower one was closed, too, and cannot be any more
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
