"""One thread that does all of a process's queue work outside its users' transactions, in groups."""

import asyncio
import contextvars
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from infra.db import DatabaseUnavailable
from infra.mq.drivers.sql.sqlite.connection import Operation, is_busy, is_disk_error, queue_error
from infra.mq.errors import QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable

T = TypeVar("T")
Job = Callable[[], None]

GROUP_LIMIT = 500
"""How many operations share a transaction at most."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.005


@dataclass(slots=True)
class _Request:
    operation: Operation[Any]
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Failed:
    error: Exception


class Writer:
    """Runs operations on one connection: those that came in while a group was under way form the next group.

    A group is one transaction, and each caller gets its own result. An operation that fails is rolled back alone: the
    others of its group are run again without it. A caller that is cancelled leaves its operation to happen or not.

    Args:
        path: The file, for messages.
        connect: Opens the connection; it is used in the writer's thread alone.
        lock: Enters this process's line for the database, so that nobody polls SQLite's lock against a colleague.
        patience: How many seconds a group waits for other processes.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        lock: Callable[[], AbstractAsyncContextManager[object]],
        patience: float,
    ) -> None:
        self._path = path
        self._connect = connect
        self._lock = lock
        self._patience = patience
        self._requests: list[_Request] = []
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._pump: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self.groups = 0
        """How many groups were committed so far."""

    async def open(self) -> None:
        """Start the thread and connect.

        Raises:
            QueueUnavailable: the file cannot be opened.
        """
        self._thread = threading.Thread(target=self._work, name="beneath-queue-writer", daemon=True)
        self._thread.start()
        try:
            self._db = await self._in_thread(self._connect)
        except sqlite3.Error as error:
            self._stop_thread()
            raise queue_error(error, self._path) from error

    async def close(self) -> None:
        """Finish what was asked for, and disconnect."""
        if self._thread is None:
            return
        while self._pump is not None:
            await asyncio.wait([self._pump])
        db, self._db = self._db, None
        if db is not None:
            await self._in_thread(db.close)
        self._stop_thread()

    async def run(self, operation: Operation[T]) -> T:
        """Run `operation` in a transaction that may be shared, and return its result after COMMIT.

        Raises:
            QueueUnavailable: nothing of it happened.
            QueueIndeterminate: the disk failed at COMMIT.
            QueueError: what the operation raised; nothing of it happened.
        """
        if self._db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._requests.append(_Request(operation, answer))
        if self._pump is None:
            # Nobody's context: the first caller's transaction is not that of the others in its group.
            self._pump = asyncio.get_running_loop().create_task(self._work_off(), context=contextvars.Context())
        return await answer

    async def _work_off(self) -> None:
        try:
            while self._requests:
                await self._next_group()
        except BaseException as error:
            self._fail_all(QueueClosed(f"{self._path}: the queue's writer was stopped: {error!r}"))
            raise
        finally:
            self._pump = None

    async def _next_group(self) -> None:
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._lock())
            except DatabaseUnavailable as error:
                self._fail_all(QueueUnavailable(f"{self._path}: {error}"))
                return
            group = [it for it in self._requests[:GROUP_LIMIT] if not it.answer.done()]
            del self._requests[:GROUP_LIMIT]
            if group:
                await self._run(group)

    async def _run(self, group: list[_Request]) -> None:
        db = self._db
        if db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        operations = [it.operation for it in group]
        try:
            results = await self._in_thread(lambda: self._run_in_thread(db, operations))
        except BaseException:
            for request in group:
                request.answer.cancel()
            raise
        self.groups += 1
        for request, result in zip(group, results, strict=True):
            if request.answer.done():
                continue
            if isinstance(result, _Failed):
                request.answer.set_exception(result.error)
            else:
                request.answer.set_result(result)

    def _fail_all(self, error: QueueError) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    def _run_in_thread(self, db: sqlite3.Connection, operations: list[Operation[Any]]) -> list[Any]:
        try:
            self._begin(db)
        except sqlite3.Error as error:
            failed = _Failed(queue_error(error, self._path))
            return [failed] * len(operations)
        try:
            results = [operation(db) for operation in operations]
        except Exception as error:  # noqa: BLE001  # handed to the caller whose operation it was
            _roll_back(db)
            if len(operations) > 1:
                return [self._run_in_thread(db, [operation])[0] for operation in operations]
            return [_Failed(self._meaning(error))]
        return self._commit(db, results)

    def _commit(self, db: sqlite3.Connection, results: list[Any]) -> list[Any]:
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(db)
            failed: QueueError = queue_error(error, self._path)
            if is_disk_error(error):
                failed = QueueIndeterminate(str(failed))
            return [_Failed(failed)] * len(results)
        return results

    def _meaning(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error | OverflowError | UnicodeError):
            meaning = queue_error(error, self._path)
            meaning.__cause__ = error
            return meaning
        return error

    def _begin(self, db: sqlite3.Connection) -> None:
        # SQLite's own waiting backs off to 100 ms, and so starves whoever has waited longest.
        deadline, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
            else:
                return
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # only spreads the attempts
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put(lambda: _answer(loop, done, work))
        return await done

    def _stop_thread(self) -> None:
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _answer(loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]", work: Callable[[], T]) -> None:
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  # handed to whoever waits
        outcome: Callable[[], None] = _Deliver(done, error=error)
    else:
        outcome = _Deliver(done, result=result)
    try:
        loop.call_soon_threadsafe(outcome)
    except RuntimeError:
        # The loop was closed without waiting for us: nobody is left to hear it.
        return


class _Deliver:
    def __init__(self, done: "asyncio.Future[Any]", *, result: object = None, error: Exception | None = None) -> None:
        self._done = done
        self._result = result
        self._error = error

    def __call__(self) -> None:
        if self._done.done():
            return
        if self._error is not None:
            self._done.set_exception(self._error)
        else:
            self._done.set_result(self._result)


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite rolled it back by itself, as it does after some disk errors.
            return
