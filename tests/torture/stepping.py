"""A wall clock that a test steps while its process runs; the process's other clocks go on undisturbed."""

import mmap
import struct
import time
from pathlib import Path

from infra.clock import SystemClock

_OFFSET = struct.Struct("<d")


class SteppedClock(SystemClock):
    """The machine's clock, its wall clock off by the number of seconds in a file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._offset = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)

    def time(self) -> float:
        return time.time() + float(_OFFSET.unpack_from(self._offset)[0])


def step(path: Path, seconds: float) -> None:
    """Set how far the wall clock of the processes with this file is off; make the file if there is none."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_OFFSET.pack(seconds))
