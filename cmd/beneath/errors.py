"""What the executable refuses, and how any error is told to people."""

import errno
import os
import resource

from dependencies.errors import SetupError


class UsageError(SetupError):
    """A command was given something that does not exist or does not fit."""


class StartError(SetupError):
    """A part cannot start here and now."""


def shortage(error: OSError) -> str | None:
    """Return one line about what this machine or process lacks; None if the error is about something else."""
    match error.errno:
        case errno.ENOENT if not _has_working_directory():
            return "the working directory was removed; change to one that is there"
        case errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"this process may open no more than {limit} files and connections; raise the limit "
                "(`ulimit -n`, LimitNOFILE= in a systemd unit)"
            )
        case errno.ENFILE:
            return "this machine has as many files open as it allows; raise fs.file-max, or run less on it"
        case errno.ENOMEM | errno.EAGAIN:
            return f"this machine or container has no memory or processes left: {error.strerror}"
        case errno.ENOSPC | errno.EDQUOT:
            return f"no space left{f' for {error.filename}' if error.filename else ''}; make room, then try again"
    return None


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - the same
    except FileNotFoundError:
        return False
    return True
