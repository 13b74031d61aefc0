"""Counts the commands and arguments of the scripts that a server runs."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests import servers

_LINE = re.compile(rb'^\+\d+\.\d+ \[\d+ (\S+)\] "(\w+)"')
_RANGE = re.compile(rb'"LRANGE" "[^"]+:(?:line|old)" "(-?\d+)" "(-?\d+)"')
_POP = re.compile(rb'"[LR]POP" "[^"]+:(?:line|old)" "(\d+)"')
_FIELDS = re.compile(rb'"HM?GET" "[^"]+:body" (.*)')
END = b"end of the work"


@dataclass(slots=True)
class Work:
    """The work of the scripts during a count."""

    scripts: list[int] = field(default_factory=list)
    """For each script that ran, how many arguments its commands had: all the keys, fields, members and values."""

    messages: list[int] = field(default_factory=list)
    """For each script, how many messages its commands may have read."""

    @property
    def largest(self) -> int:
        """The largest number of arguments of all commands of one script."""
        return max(self.scripts, default=0)

    @property
    def total(self) -> int:
        """The number of arguments of all commands."""
        return sum(self.scripts)

    def read(self, line: bytes) -> None:
        """Count one line of MONITOR."""
        found = _LINE.match(line)
        if found is None:
            return
        client, command = found.groups()
        if client == b"lua":
            self.scripts[-1] += line.count(b'" "')
            self.messages[-1] += _messages_of(line)
        elif command.upper() in {b"EVALSHA", b"EVAL"}:
            self.scripts.append(0)
            self.messages.append(0)


def _messages_of(line: bytes) -> int:
    """Return how many messages a command may read."""
    if found := _RANGE.search(line):
        first, last = map(int, found.groups())
        return last - first + 1
    if found := _POP.search(line):
        return int(found[1])
    found = _FIELDS.search(line)
    return found[1].count(b'" "') + 1 if found else 0


@asynccontextmanager
async def counted(server: servers.RedisServer) -> AsyncIterator[Work]:
    """Count the work of every script that runs in the block; no other test may use the server."""
    work = Work()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 28)
    writer.write(b"MONITOR\r\n")
    await reader.readline()

    async def read() -> None:
        while END not in (line := await reader.readline()):
            work.read(line)

    reading = asyncio.create_task(read())
    yield work
    other_reader, other = await asyncio.open_connection("127.0.0.1", server.port)
    other.write(b'ECHO "' + END + b'"\r\n')
    await other_reader.readline()
    await reading
    # A script that the server did not know yet did nothing.
    work.scripts = [it for it in work.scripts if it]
    for each in (writer, other):
        each.close()
        await each.wait_closed()
