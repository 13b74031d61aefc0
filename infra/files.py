"""Files and folders for their owner alone, and what to say when file descriptors or threads run out."""

import errno
import os
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

THREADS_SHORT = "no thread could be started; raise the limit of processes (`ulimit -u`, TasksMax= in a systemd unit)"
"""The text of errors after starting a thread raised RuntimeError."""

_NEEDED = 4
"""The largest number of files that one step of a library opens at once."""


def private_folder(path: Path) -> None:
    """Create `path`, and what lacks above it, for its owner alone, whatever the umask; leave a folder that is there.

    Raises:
        OSError: it cannot be created, or something else is there.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        try:
            each.mkdir(PRIVATE_FOLDER)
        except FileExistsError:
            if not each.is_dir():
                raise
        else:
            each.chmod(PRIVATE_FOLDER)  # the umask may have taken away what the owner needs


def private_file(path: Path) -> None:
    """Create an empty file for its owner alone, whatever the umask; leave a file that is there.

    Raises:
        OSError: it cannot be created.
    """
    path = path.resolve()  # a link to a file that is not there yet
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, PRIVATE_FILE)
    finally:
        os.close(descriptor)


def descriptors_short() -> str | None:
    """Return a line that says that this process cannot open more files, or None if it can.

    Some libraries report only that opening failed, not why.
    """
    opened: list[int] = []
    try:
        while len(opened) < _NEEDED:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return "too many files are open; raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)"
    finally:
        for each in opened:
            os.close(each)
    return None
