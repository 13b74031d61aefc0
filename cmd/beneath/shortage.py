"""Explanations of errors of the operating system: which resource has run out."""

import errno
import os
import resource


def explain_shortage(error: OSError) -> str | None:
    """Return one line about the resource that has run out and its remedy; None if the error has another reason."""
    match error.errno:
        case errno.ENOENT if not _has_working_directory():
            return "the working directory was removed; change to one that exists"
        case errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"this process may open no more than {limit} files and connections; raise the limit "
                "(`ulimit -n`, LimitNOFILE= in a systemd unit)"
            )
        case errno.ENFILE:
            return "this machine has reached its limit of open files; raise fs.file-max, or stop other processes"
        case errno.ENOMEM | errno.EAGAIN:
            return f"this machine or container has run out of memory or processes: {error.strerror}; raise its limits"
        case errno.ENOSPC | errno.EDQUOT:
            return f"no disk space left{f' for {error.filename}' if error.filename else ''}; free some, then try again"
    return None


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - the same
    except FileNotFoundError:
        return False
    return True
