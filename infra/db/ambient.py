"""The context managers of `Database`, and the ambient transaction of the running code."""

import asyncio
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, cast

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util.concurrency import greenlet_spawn

from infra.db.dialect import DatabaseDialect
from infra.db.errors import DatabaseUnavailable, NoTransaction
from infra.db.lock import WriteLock
from infra.db.savepoint import RollbackScope
from infra.db.session import ReadSession
from infra.db.transaction import Transaction
from infra.ownership import LoopOwner


class _Ambient(NamedTuple):
    """The transaction of one database around the running code; None where `db.hidden()` hides it."""

    dialect: DatabaseDialect
    transaction: Transaction | None
    outer: "_Ambient | None"


_ambient: ContextVar[_Ambient | None] = ContextVar("infra.db.transaction", default=None)


def surrounding(dialect: DatabaseDialect) -> Transaction | None:
    """Return the open transaction on `dialect` around the running code; None if there is none.

    Raises:
        TransactionNotOwned: the transaction belongs to another task.
    """
    found = _ambient.get()
    while found is not None and found.dialect is not dialect:
        found = found.outer
    if found is None or found.transaction is None or found.transaction.ended:
        return None
    found.transaction.check_owner()
    return found.transaction


class Hidden:
    """A block in which no transaction on `dialect` is ambient."""

    def __init__(self, dialect: DatabaseDialect) -> None:
        self._dialect = dialect
        self._outer: _Ambient | None = None

    def __enter__(self) -> None:
        self._outer = _ambient.get()
        _ambient.set(_Ambient(self._dialect, None, self._outer))

    def __exit__(self, *_: object) -> None:
        _ambient.set(self._outer)


class TransactionBlock:
    """A block inside a transaction: a new one, or the one that is already open."""

    def __init__(self, dialect: DatabaseDialect, lock: WriteLock) -> None:
        self._dialect = dialect
        self._lock = lock
        self._mine: Transaction | None = None
        self._joined: RollbackScope | None = None
        self._outer: _Ambient | None = None

    async def __aenter__(self) -> Transaction:
        transaction = surrounding(self._dialect)
        if transaction is not None:
            self._joined = transaction.scope
            return transaction
        self._outer = _ambient.get()
        self._mine = Transaction(self._dialect, self._lock)
        _ambient.set(_Ambient(self._dialect, self._mine, self._outer))
        return self._mine

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._joined is not None:
            if error is not None:
                self._joined.mark(error)
            return
        if self._mine is not None:
            await self._end(self._mine, error)

    async def _end(self, transaction: Transaction, error: BaseException | None) -> None:
        failure = error
        if error is None:
            try:
                await transaction.prepare()
            except BaseException as raised:  # noqa: BLE001  # raised again once the transaction has ended
                failure = raised
        ending = await transaction.end(failure)
        _ambient.set(self._outer)
        cancelled = await transaction.notify(kept=ending.kept) or ending.cancelled
        if cancelled is not None:
            raise cancelled from ending.error
        if ending.error is not None and ending.error is not error:
            raise ending.error


class SavepointBlock:
    """A block inside a savepoint of the transaction around it."""

    def __init__(self, dialect: DatabaseDialect) -> None:
        self._dialect = dialect
        self._transaction: Transaction | None = None
        self._scope: RollbackScope | None = None

    async def __aenter__(self) -> Transaction:
        transaction = surrounding(self._dialect)
        if transaction is None:
            raise NoTransaction("db.savepoint() needs a transaction; put `async with db.transaction():` around it")
        self._scope = await transaction.enter_savepoint()
        self._transaction = transaction
        return transaction

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._transaction is not None and self._scope is not None:
            await self._transaction.leave_savepoint(self._scope, error)


class ReadBlock:
    """A block with a read-only session."""

    def __init__(self, dialect: DatabaseDialect, owner: LoopOwner, slots: asyncio.Semaphore, timeout: float) -> None:
        self._dialect = dialect
        self._owner = owner
        self._slots = slots
        self._timeout = timeout
        self._session: ReadSession | None = None

    async def __aenter__(self) -> AsyncSession:
        transaction = surrounding(self._dialect)
        if transaction is not None:
            return transaction.session
        engine = self._dialect.reader.sync_engine
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()

        def gate() -> Engine:
            self._owner.is_here()  # the session may have been passed to a thread
            return engine

        session = AsyncSession(sync_session_class=ReadSession, expire_on_commit=False, autoflush=False, gate=gate)
        self._session = cast("ReadSession", session.sync_session)
        return session

    async def __aexit__(self, *_: object) -> None:
        if self._session is None:
            return
        try:
            await greenlet_spawn(self._session.end)
        except Exception as error:
            # The results of the reads are valid, even if the connection was lost before the transaction ended.
            if self._dialect.explain(error) is None:
                raise
        finally:
            self._slots.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(
                f"all {self._dialect.max_reads} read connections were in use for more than {self._timeout:g} s; "
                "keep slow work, such as network calls, out of db.read()"
            ) from None


class LockBlock:
    """A block that holds the write lock, on databases that have one."""

    def __init__(self, lock: WriteLock | None) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        if self._lock is not None:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
