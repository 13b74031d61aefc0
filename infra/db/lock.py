"""The lock for which the writers of one process wait in order, instead of polling SQLite's file lock."""

import asyncio
from collections import deque

from infra.clock import Clock
from infra.db.errors import DatabaseError, DatabaseUnavailable


class WriteLock:
    """A fair, reentrant lock: tasks get it in the order of their requests; its holder may acquire it again."""

    def __init__(self, clock: Clock, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._holder: asyncio.Task[object] | None = None
        self._depth = 0
        self.occupied = False
        """Whether a transaction of the holder has begun; the holder cannot begin a second one."""
        self._waiting: deque[tuple[asyncio.Event, asyncio.Task[object]]] = deque()

    @property
    def locked(self) -> bool:
        """Whether a task holds the lock."""
        return self._depth > 0

    def acquire_nowait(self) -> bool:
        """Acquire the lock for the current task if that needs no waiting; return whether it was acquired."""
        task = current_task()
        if self._holder is task:
            self._depth += 1
            return True
        if self._depth:
            return False
        self._holder, self._depth = task, 1
        return True

    async def acquire(self) -> None:
        """Acquire the lock for the current task.

        Raises:
            DatabaseUnavailable: the lock was not granted within the timeout.
        """
        if self.acquire_nowait():
            return
        turn = asyncio.Event()
        entry = (turn, current_task())
        self._waiting.append(entry)
        try:
            granted = await self._clock.wait(turn, self._timeout)
        except BaseException:
            if turn.is_set():
                self.release()
            else:
                self._waiting.remove(entry)
            raise
        if granted or turn.is_set():
            return
        self._waiting.remove(entry)
        raise DatabaseUnavailable(
            f"another transaction of this process held the write lock for more than {self._timeout:g} s; "
            "keep slow work, such as network calls, out of transactions"
        )

    def release(self) -> None:
        """Undo one `acquire`; the last one grants the lock to the next waiter."""
        self._depth -= 1
        if self._depth:
            return
        self._holder = None
        if self._waiting:
            turn, self._holder = self._waiting.popleft()
            self._depth = 1
            turn.set()


def current_task() -> "asyncio.Task[object]":
    """Return the running task.

    Raises:
        DatabaseError: no task is running.
    """
    task = asyncio.current_task()
    if task is None:
        raise DatabaseError("the database can only be used from inside an asyncio task")
    return task
