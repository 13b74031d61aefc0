"""Things that belong to the event loop which opened them: databases, queues and buses.

Their connections, locks and waiters work in that loop only. Used from elsewhere some clients hang, answer to the wrong
caller or crash the process; a forked child would talk over its parent's connections. So every entry point checks first.
"""

import asyncio
import os
from asyncio import events

# The public function raises outside of a loop, which costs more than the check. A forked child has no running loop.
_running_loop = events._get_running_loop  # noqa: SLF001 - the module exports it


class WrongEventLoop(RuntimeError):
    """Something was used from an event loop, a thread or a process other than the one that opened it.

    A mistake in the program: nothing was done, and trying again does not help.
    """


class LoopOwner:
    """The event loop in which something was opened, as long as it is open."""

    __slots__ = ("_loop", "_pid", "_what")

    def __init__(self, what: str) -> None:
        """Belong to no event loop yet; `what` is how errors call the thing that is owned."""
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def enter(self) -> None:
        """Belong to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    def leave(self) -> None:
        """Belong to no event loop any more: another one may open the thing."""
        self._loop = None

    def is_here(self) -> bool:
        """Return whether it is open, in the running event loop; False if it is not open.

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
