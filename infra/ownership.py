"""The event loop that opened a database, a queue or a bus, and the check that calls come from it.

Connections, locks and waiters work in that loop only. In another loop some clients hang, answer the wrong caller or
crash the process; a forked child would use its parent's connections. So every entry point checks first.
"""

import asyncio
import os
from asyncio import events

# The public function raises outside of a loop, which costs more than the check. A forked child has no running loop.
_running_loop = events._get_running_loop  # noqa: SLF001 - the module exports it


class WrongEventLoop(RuntimeError):
    """A database, queue or bus was used in an event loop, a thread or a process other than the one that opened it.

    A mistake in the program: nothing was done, and trying again does not help.
    """


class LoopOwner:
    """The event loop that a database, queue or bus belongs to while it is open."""

    __slots__ = ("_loop", "_pid", "_what")

    def __init__(self, what: str) -> None:
        """Begin without an event loop; `what` names the object in errors, such as "the queue"."""
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def enter(self) -> None:
        """Record the running event loop, and its process, as the owner."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    def leave(self) -> None:
        """Remove the owner: any event loop may open the object again."""
        self._loop = None

    def is_here(self) -> bool:
        """Return True if the object is open in the running event loop; False if it is not open.

        Raises:
            WrongEventLoop: it is open, but belongs to another event loop, thread or process.
        """
        loop = self._loop
        if loop is None:
            return False
        if loop is _running_loop():
            return True
        raise WrongEventLoop(f"{self._what} {self._elsewhere(loop)}")

    def _elsewhere(self, loop: asyncio.AbstractEventLoop) -> str:
        if os.getpid() != self._pid:
            return "was opened before this process was forked; open one of its own in the child"
        if loop.is_closed():
            return "was opened in an event loop that has ended without closing it; make a new one in each event loop"
        if _running_loop() is None:
            return (
                "was used outside of its event loop; from a thread, hand the coroutine to that loop by "
                "asyncio.run_coroutine_threadsafe(coroutine, loop)"
            )
        return (
            "was opened in another event loop; hand the coroutine to that loop by "
            "asyncio.run_coroutine_threadsafe(coroutine, loop), or make a new one in this event loop"
        )
