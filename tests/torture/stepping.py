"""A wall clock that a test steps while the process runs; its monotonic clock is not changed."""

import mmap
import struct
import time
from pathlib import Path

from infra.clock import SystemClock

_OFFSET = struct.Struct("<d")


class SteppedClock(SystemClock):
    """The machine's clock, with the wall clock offset by the seconds in a file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._offset = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)

    def time(self) -> float:
        return time.time() + float(_OFFSET.unpack_from(self._offset)[0])


def step(path: Path, seconds: float) -> None:
    """Set the wall clock offset of the processes that use this file; create the file if it is missing."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_OFFSET.pack(seconds))
