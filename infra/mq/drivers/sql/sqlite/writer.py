"""The writer thread: it runs the queue's operations outside of the application's transactions, in groups."""

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
from typing import Any, NamedTuple, TypeVar

import structlog

from infra.db import DatabaseUnavailable
from infra.db.cancellation import begin, finish
from infra.db.sqlite_thread import hand_over
from infra.mq.drivers.sql.sqlite.connection import Operation, is_busy, is_disk_error, queue_error, starting_a_thread
from infra.mq.drivers.sql.sqlite.joinable import run_in_order
from infra.mq.errors import QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")
Job = Callable[[], None]

GROUP_LIMIT = 500
"""The maximum number of operations in a transaction."""

GROUP_ITEMS = 2000
"""The number of deliveries in a group after which no operation is added."""

GROUP_BYTES = 8 * 1024 * 1024
"""The size of bodies in a group, in bytes, after which no operation is added."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.005


class Weight(NamedTuple):
    """The deliveries and bytes for which an operation counts in a group."""

    items: int
    bytes: int = 0


LIGHT = Weight(1)


@dataclass(slots=True)
class _Request:
    operation: Operation[Any]
    weight: Weight
    answer: asyncio.Future[Any]
    on_cancelled: Callable[[Any], object]
    accepts: bool
    notifies: bool


@dataclass(slots=True)
class _Failed:
    error: Exception


class _GroupFailed(Exception):
    """The database failed, not one operation of the group; the whole group was rolled back."""


def _nothing(*_: object) -> None:
    """Do nothing."""


class Writer:
    """The writer of a process: operations submitted while a group runs form the next group, on one connection.

    A group is one transaction of bounded size, and each caller gets its own result. An operation that fails is rolled
    back alone: its group runs again, with each operation in a savepoint. The operation of a cancelled caller may happen
    or not. When the event loop cancels all tasks, a running group is completed, and waiting operations are refused.

    Args:
        path: The file, for messages.
        connect: Opens the connection, which only the writer's thread uses.
        lock: Acquires this process's write lock, so that its writers do not compete for SQLite's lock by polling.
        patience: Seconds that a group waits for other processes.
        check: Raises sqlite3.OperationalError when the path leads to another file than the open one; called before
            each COMMIT of a group in which an operation has `accepts`.
        check_if_due: Does the same, but only from time to time; called before all other COMMITs.
        committed: Called in the thread after each COMMIT.
        notify_others: Called in the thread after each group in which an operation has `notifies`.
        changed: Called in the event loop after such a group.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        lock: Callable[[], AbstractAsyncContextManager[object]],
        patience: float,
        *,
        check: Callable[[], None] = _nothing,
        check_if_due: Callable[[], None] = _nothing,
        committed: Callable[[sqlite3.Connection], None] = _nothing,
        notify_others: Callable[[], None] = _nothing,
        changed: Callable[[], None] = _nothing,
    ) -> None:
        self._path = path
        self._connect = connect
        self._lock = lock
        self._patience = patience
        self._check = check
        self._check_if_due = check_if_due
        self._committed = committed
        self._notify_others = notify_others
        self._changed = changed
        self._requests: list[_Request] = []
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._pump: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self.groups = 0
        """The number of groups committed so far."""

    async def open(self) -> None:
        """Start the thread and connect.

        Raises:
            QueueUnavailable: the file cannot be opened, or no thread can be started.
        """
        thread = threading.Thread(target=self._work, name="beneath-queue-writer", daemon=True)
        with starting_a_thread(self._path):
            thread.start()
        self._thread = thread
        try:
            self._db = await self._in_thread(self._connect)
        except sqlite3.Error as error:
            self._stop_thread()
            raise queue_error(error, self._path) from error

    async def close(self) -> None:
        """Complete the submitted operations and disconnect, even if the caller is cancelled meanwhile."""
        if self._thread is None:
            return
        closed = await finish(self._close())
        if closed.cancelled is not None:
            raise closed.cancelled
        closed.task.result()

    async def run(
        self,
        operation: Operation[T],
        weight: Weight = LIGHT,
        *,
        on_cancelled: Callable[[T | Exception], object] = _nothing,
        accepts: bool = True,
        notifies: bool = False,
    ) -> T:
        """Run `operation` in a transaction that may be shared, and return its result after COMMIT.

        `on_cancelled` is called with the result or the error of an operation that had begun before its caller was
        cancelled. `accepts` says that the caller relies on what the operation stores: it is never stored in a file
        that has been moved away from the path. `notifies` says that waiting consumers may have more to do afterwards.

        Raises:
            QueueUnavailable: the operation changed nothing.
            QueueIndeterminate: the disk failed at COMMIT.
            QueueError: the error of the operation, which changed nothing.
        """
        if self._db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._requests.append(_Request(operation, weight, answer, on_cancelled, accepts, notifies))
        if self._pump is None:
            # In an empty context: the first caller's transaction must not be ambient for the rest of the group.
            self._pump = begin(self._work_off(), context=contextvars.Context())
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled():  # the answer came just before the cancellation
                error = answer.exception()
                on_cancelled(error if isinstance(error, Exception) else answer.result())
            raise

    async def _close(self) -> None:
        while self._pump is not None:
            await asyncio.wait([self._pump])
        db, self._db = self._db, None
        if db is not None:
            await self._in_thread(db.close)
        self._stop_thread()

    async def _work_off(self) -> None:
        try:
            while self._requests:
                await self._next_group()
        except asyncio.CancelledError:
            self._fail_all(QueueUnavailable(f"{self._path}: nothing was written: the event loop is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001  # no caller may wait for ever
            _log.exception("queue writer failed")
            self._fail_all(QueueUnavailable(f"{self._path}: {error}"))
        finally:
            self._pump = None

    async def _next_group(self) -> None:
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._lock())
            except DatabaseUnavailable as error:
                self._fail_all(QueueUnavailable(f"{self._path}: {error}"))
                return
            group = self._take_group()
            if group:
                await self._run(group)

    def _take_group(self) -> list[_Request]:
        group: list[_Request] = []
        items = size = taken = 0
        for request in self._requests[:GROUP_LIMIT]:
            taken += 1
            if request.answer.done():
                continue
            group.append(request)
            items += request.weight.items
            size += request.weight.bytes
            if items >= GROUP_ITEMS or size >= GROUP_BYTES:
                break
        del self._requests[:taken]
        return group

    async def _run(self, group: list[_Request]) -> None:
        db = self._db
        if db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        operations = [it.operation for it in group]
        check = self._check if any(it.accepts for it in group) else self._check_if_due
        # A running group continues in its thread, and its callers get their results, even if this task is cancelled.
        notifies = any(it.notifies for it in group)
        done = self._post(lambda: self._run_in_thread(db, operations, check, notifies))
        cancelled: asyncio.CancelledError | None = None
        try:
            await done
        except asyncio.CancelledError as error:
            cancelled = error
        results = done.result()
        self.groups += 1
        if notifies:
            self._changed()
        for request, result in zip(group, results, strict=True):
            if request.answer.done():
                request.on_cancelled(result.error if isinstance(result, _Failed) else result)
            elif isinstance(result, _Failed):
                request.answer.set_exception(result.error)
            else:
                request.answer.set_result(result)
        if cancelled is not None:
            raise cancelled

    def _fail_all(self, error: QueueError) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    def _run_in_thread(
        self, db: sqlite3.Connection, operations: list[Operation[Any]], check: Callable[[], None], notifies: bool
    ) -> list[Any]:
        results = self._run_group(db, operations, check)
        if notifies:
            self._notify_others()
        return results

    def _run_group(
        self, db: sqlite3.Connection, operations: list[Operation[Any]], check: Callable[[], None]
    ) -> list[Any]:
        """Run a group in one transaction; if an operation fails, run the group again with a savepoint for each."""
        try:
            self._begin(db)
            try:
                return self._commit(db, run_in_order(db, operations), check)
            except Exception as error:  # raised in the caller of that operation
                _roll_back(db)
                meaning = self._meaning(error)
                if len(operations) == 1:
                    return [_Failed(meaning)]
                if isinstance(meaning, QueueUnavailable):
                    raise _GroupFailed(str(meaning)) from error
            self._begin(db)
            return self._commit(db, [self._run_alone(db, operation) for operation in operations], check)
        except _GroupFailed as error:
            failed: QueueError = QueueUnavailable(str(error))
        except Exception as error:  # noqa: BLE001  # every caller gets an answer
            failed = self._failure(error)
        _roll_back(db)
        return [_Failed(failed)] * len(operations)

    def _run_alone(self, db: sqlite3.Connection, operation: Operation[Any]) -> object:
        db.execute("SAVEPOINT beneath_queue")
        try:
            result = operation(db)
        except Exception as error:  # raised in the caller of that operation
            meaning = self._meaning(error)
            if isinstance(meaning, QueueUnavailable) or not db.in_transaction:
                # The disk or the file failed; SQLite may have rolled back the whole transaction.
                raise _GroupFailed(str(meaning)) from error
            db.execute("ROLLBACK TO beneath_queue")
            db.execute("RELEASE beneath_queue")
            return _Failed(meaning)
        db.execute("RELEASE beneath_queue")
        return result

    def _commit(self, db: sqlite3.Connection, results: list[Any], check: Callable[[], None]) -> list[Any]:
        try:
            check()
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # the group was rolled back; after a disk error its outcome is unknown
            _roll_back(db)
            failed = self._failure(error)
            if is_disk_error(error):
                failed = QueueIndeterminate(str(failed))
            return [_Failed(failed)] * len(results)
        self._committed(db)
        return results

    def _meaning(self, error: Exception) -> Exception:
        """Return the error that the caller of a failed operation gets."""
        if isinstance(error, sqlite3.Error | OverflowError | UnicodeError | MemoryError):
            meaning = queue_error(error, self._path)
            meaning.__cause__ = error
            return meaning
        return error

    def _failure(self, error: Exception) -> QueueError:
        """Return the error that all callers of a group get when BEGIN or COMMIT fails."""
        if isinstance(error, sqlite3.Error | OSError | MemoryError):
            return queue_error(error, self._path)
        _log.error("queue writer failed", exc_info=error)
        return QueueUnavailable(f"{self._path}: {error}")

    def _begin(self, db: sqlite3.Connection) -> None:
        # SQLite's own busy handler backs off to 100 ms, and so starves the process that has waited longest.
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
        return await self._post(work)

    def _post(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = _Result(loop=asyncio.get_running_loop())
        self._jobs.put(lambda: _answer(done, work))
        return done

    def _stop_thread(self) -> None:
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class _Result(asyncio.Future[T]):
    """A result of the thread; cancelling a task that waits for it takes effect only once the result is there."""

    def cancel(self, msg: object = None) -> bool:  # as in the base class
        return False


def _answer(done: "asyncio.Future[T]", work: Callable[[], T]) -> None:
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  # raised in the waiting task
        hand_over(done, None, error)
    else:
        hand_over(done, result, None)


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite has rolled back by itself, as after some disk errors.
            return
