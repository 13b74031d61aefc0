"""One transaction and its participants: begun at the first use of the database, committed or rolled back together."""

import asyncio
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from infra.db.cancellation import finish
from infra.db.dialect import DatabaseDialect
from infra.db.errors import (
    CommitIndeterminate,
    DatabaseError,
    NoTransaction,
    TransactionNotOwned,
    TransactionRolledBack,
)
from infra.db.lock import WriteLock, current_task
from infra.db.participant import Participant
from infra.db.savepoint import RollbackScope
from infra.db.session import TransactionSession

MAX_ROUNDS = 32
"""The maximum number of rounds in which participants may add work before COMMIT; more count as an endless loop."""

_log = structlog.stdlib.get_logger(__name__)
_P = TypeVar("_P", bound=Participant)


class Ending(NamedTuple):
    """The result of a transaction: whether it was committed, its error, and a cancellation to be raised."""

    kept: bool
    error: BaseException | None
    cancelled: asyncio.CancelledError | None


class Transaction:
    """A transaction of one task, created and ended by the outermost `db.transaction()` block.

    Using it in another task raises `TransactionNotOwned`; after its end, `NoTransaction`.
    """

    def __init__(self, dialect: DatabaseDialect, lock: WriteLock) -> None:
        self.owner = current_task()
        self.ended = False
        self._dialect = dialect
        self._lock = lock
        self._locked = False
        self._ending = False
        self._connection: Connection | None = None
        self._session: AsyncSession | None = None
        self._on_begin: list[Callable[[Connection], None]] = []
        self._participants: dict[Hashable, Participant] = {}
        self._asked = 0
        self._scope = RollbackScope(None)

    @property
    def begun(self) -> bool:
        """Whether BEGIN was sent; before that nothing is read, written or locked."""
        return self._connection is not None

    @property
    def session(self) -> AsyncSession:
        """The ORM session of this transaction. Its first use of the database begins the transaction.

        It ends with the transaction: `commit`, `rollback`, `close` and `begin_nested` raise `DatabaseError`. A failed
        flush makes the innermost savepoint, or else the transaction, rollback-only.

        Raises:
            TransactionNotOwned: this task is not the one that opened the transaction.
            NoTransaction: the transaction has ended.
        """
        self.check_owner()
        if self._session is None:
            self._session = AsyncSession(
                sync_session_class=TransactionSession,
                expire_on_commit=False,
                gate=self._gate,
                on_begin=self._begin,
                on_failure=self.mark_rollback_only,
            )
        return self._session

    async def connection(self) -> AsyncConnection:
        """Begin the transaction if necessary, and return its connection.

        Raises:
            DatabaseUnavailable: the transaction cannot begin now.
            TransactionNotOwned: this task is not the one that opened the transaction.
            NoTransaction: the transaction has ended.
        """
        return await self.session.connection()

    def on_begin(self, call: Callable[[Connection], None]) -> None:
        """Run `call` right after BEGIN, before any other statement. If it raises, the transaction is rollback-only.

        Raises:
            DatabaseError: the transaction has already begun.
        """
        self.check_owner()
        if self.begun:
            raise DatabaseError(
                "on_begin() was called after the transaction had begun; call it before the first statement"
            )
        self._on_begin.append(call)

    def mark_rollback_only(self, cause: BaseException) -> None:
        """Make the innermost savepoint, or else the transaction, end in a rollback and `TransactionRolledBack`."""
        self._scope.mark(cause)

    def participant(self, key: Hashable, factory: Callable[[], _P]) -> _P:
        """Return this transaction's participant for `key`; create it with `factory` if there is none.

        Raises:
            TransactionNotOwned: this task is not the one that opened the transaction.
            NoTransaction: the transaction has ended.
        """
        self.check_owner()
        self._asked += 1
        found = self._participants.get(key)
        if found is None:
            found = self._participants[key] = factory()
            self._scope.joined(key, found)
        return cast("_P", found)

    def check_owner(self) -> None:
        """Check that the current task opened this transaction and that the transaction has not ended.

        Raises:
            TransactionNotOwned: this task is not the one that opened the transaction.
            NoTransaction: the transaction has ended.
        """
        if self.ended:
            raise NoTransaction("this transaction has ended; its session and connection cannot be used any more")
        if not self.owned:
            raise TransactionNotOwned(
                f"this transaction belongs to the task {self.owner.get_name()!r}; use it in that task, or start this "
                "task inside `with db.hidden():` so that it opens its own transactions"
            )

    @property
    def owned(self) -> bool:
        """Whether the current task is the one that opened this transaction."""
        try:
            return asyncio.current_task() is self.owner
        except RuntimeError:  # in a thread without an event loop
            return False

    @property
    def scope(self) -> RollbackScope:
        """The innermost savepoint, or the transaction as a whole."""
        return self._scope

    async def enter_savepoint(self) -> RollbackScope:
        """Begin a savepoint for rows, session and participants."""
        session = self.session
        nested = await greenlet_spawn(_sync(session).enter_savepoint)
        scope = RollbackScope(self._scope, nested)
        for key, participant in self._participants.items():
            scope.joined(key, participant)
        self._scope = scope
        if (
            self.begun
        ):  # a statement on a connection that the caller already has would come before SQLAlchemy's SAVEPOINT
            try:
                await session.connection()
            except BaseException as error:
                await self.leave_savepoint(scope, error)
                raise
        return scope

    async def leave_savepoint(self, scope: RollbackScope, error: BaseException | None) -> None:
        """Release the savepoint, or roll it back because of `error` or because it is rollback-only.

        Raises:
            TransactionRolledBack: the savepoint was rollback-only.
        """
        nested = scope.nested
        if nested is None or scope.outer is None:
            raise DatabaseError("leave_savepoint() was called for the transaction itself; only a savepoint can be left")
        cause = error or scope.cause
        if cause is None:
            try:
                await greenlet_spawn(nested.commit)
            except BaseException as failed:  # noqa: BLE001  # raised again after the rollback
                cause = error = failed
        rolled_back = None
        if cause is not None:
            scope.roll_back(self._participants)
            rolled_back = await finish(
                greenlet_spawn(nested.rollback),
                patience=self._dialect.rollback_timeout,
                hurried=isinstance(error, asyncio.CancelledError),
            )
        self._scope = scope.outer
        if cause is None or rolled_back is None:
            return
        if rolled_back.failure is not None or self._connection_lost:
            self._scope.mark_all(cause)
        if rolled_back.cancelled is not None:
            self._scope.mark(rolled_back.cancelled)
            raise rolled_back.cancelled
        if error is None:
            raise _rolled_back("the savepoint", cause) from cause
        raise error

    async def prepare(self) -> None:
        """Flush, and run the participants' `before_commit` until they add no more work.

        Raises:
            TransactionRolledBack: the transaction was rollback-only.
        """
        self._check_marks()
        for _ in range(MAX_ROUNDS):
            await self._flush()
            asked = self._asked
            for participant in list(self._participants.values()):
                await participant.before_commit()
            if self._asked == asked:
                break
        else:
            raise DatabaseError(
                f"the participants of this transaction still add work after {MAX_ROUNDS} rounds of before_commit(); "
                "look for two that cause each other"
            )
        await self._flush()
        self._check_marks()

    async def end(self, error: BaseException | None) -> Ending:
        """Commit, or roll back because of `error`; never raises. Then the connection and the lock are free."""
        self._ending = True
        cancelled = None
        if self._session is not None:
            session = _sync(self._session)
            if self._connection is None:
                session.end(None, commit=False)  # not begun: there is nothing to commit
            else:
                ended = await finish(greenlet_spawn(session.end, self._connection, commit=error is None))
                cancelled = ended.cancelled
                if error is None:
                    error = self._commit_error(ended.failure)
                elif ended.failure is not None:
                    _log.warning("rollback failed", exc_info=ended.failure)
        if self._locked:
            if not self._dialect.settled:
                cancelled = (await finish(self._dialect.settle())).cancelled or cancelled
            self._locked = self._lock.occupied = False
            self._lock.release()
        self.ended = True
        return Ending(error is None, error, cancelled)

    async def notify(self, *, kept: bool) -> asyncio.CancelledError | None:
        """Run the participants' `after_commit` or `after_rollback`; return a cancellation that arrived meanwhile."""
        cancelled = None
        for participant in self._participants.values():
            try:
                await (participant.after_commit() if kept else participant.after_rollback())
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:  # noqa: BLE001  # the other participants are still notified
                _log.exception(
                    "transaction participant failed",
                    participant=type(participant).__qualname__,
                    committed=kept,
                )
        return cancelled

    @property
    def _connection_lost(self) -> bool:
        return self._connection is not None and self._connection.invalidated

    async def _flush(self) -> None:
        session = self._session
        if session is not None and (session.new or session.dirty or session.deleted):
            await session.flush()

    def _check_marks(self) -> None:
        cause = self._scope.cause
        if cause is not None:
            raise _rolled_back("the transaction", cause) from cause
        if self._connection_lost:
            raise TransactionRolledBack(
                "the transaction was rolled back: a statement in it was cancelled, or its connection was lost"
            )

    def _commit_error(self, error: BaseException | None) -> BaseException | None:
        if isinstance(error, asyncio.CancelledError):
            return CommitIndeterminate(
                "the event loop was stopped during COMMIT: the transaction may be committed or not"
            )
        explained = None if error is None else self._dialect.explain_commit(error)
        if explained is None:
            return error
        explained.__cause__ = error
        return explained

    def _gate(self) -> Engine:
        if self.ended or not self._ending:
            self.check_owner()
        engine = self._dialect.writer.sync_engine
        if not self._locked and self._dialect.one_writer:
            self._take_lock()
        return engine

    def _take_lock(self) -> None:
        if not self._lock.acquire_nowait():
            await_(self._lock.acquire())
        if self._lock.occupied:
            self._lock.release()
            raise DatabaseError(
                "this task already has an open transaction, hidden by db.hidden(), and a second one would wait "
                "for it for ever; end the first one"
            )
        self._locked = self._lock.occupied = True

    def _begin(self, connection: Connection) -> None:
        self._connection = connection
        calls, self._on_begin = self._on_begin, []
        try:
            for call in calls:
                call(connection)
        except BaseException as error:
            self._scope.mark_all(error)
            raise


def _sync(session: AsyncSession) -> TransactionSession:
    return cast("TransactionSession", session.sync_session)


def _rolled_back(what: str, cause: BaseException) -> TransactionRolledBack:
    text = str(cause).partition("\n")[0]
    return TransactionRolledBack(
        f"{what} was rolled back because of an error inside it: {type(cause).__name__}{f': {text}' if text else ''}"
    )
