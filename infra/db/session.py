"""The ORM session of a transaction, which ends when the transaction does and not before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.orm import Session, SessionTransaction

from infra.db.errors import DatabaseError


class TransactionSession(Session):
    """A session whose every use of the database goes through `gate`, and whose failed flushes go to `on_failure`.

    The gate is asked for the engine before each use: it takes the write lock, and refuses strangers. `on_begin` runs
    once, right after BEGIN.
    """

    def __init__(
        self,
        *,
        gate: Callable[[], Engine],
        on_begin: Callable[[Connection], None],
        on_failure: Callable[[BaseException], None],
        **options: Any,  # noqa: ANN401  # SQLAlchemy's own
    ) -> None:
        super().__init__(**options)
        self._gate = gate
        self._on_begin = on_begin
        self._on_failure = on_failure
        self._root: RootTransaction | None = None

    def get_bind(self, *_: Any, **__: Any) -> Engine:  # noqa: ANN401  # whatever is asked for, there is one
        return self._gate()

    def flush(self, objects: Any = None) -> None:  # noqa: ANN401  # SQLAlchemy's signature
        try:
            super().flush(objects)
        except BaseException as error:
            self._on_failure(error)
            raise

    def enter_savepoint(self) -> SessionTransaction:
        """Flush, and begin a savepoint; it is sent with the first statement inside it, or now if there were any."""
        return super().begin(nested=True)

    def end(self, connection: Connection | None, *, commit: bool) -> None:
        """Commit what was flushed, or roll back, and give the connection back in any case."""
        # SQLAlchemy takes a transaction whose COMMIT or ROLLBACK failed for ended; the database may not.
        try:
            if commit and connection is not None:
                with _dropped_on_error(connection):
                    self._commit(connection)
        finally:
            with _dropped_on_error(connection):
                super().close()

    def begun(self, connection: Connection) -> None:
        """Note that the transaction is under way on `connection`."""
        self._root = connection.get_transaction()
        self._on_begin(connection)

    def begin(self, nested: bool = False) -> NoReturn:  # SQLAlchemy's signature
        self._refuse("begin_nested()" if nested else "begin()", "`db.savepoint()`" if nested else "`db.transaction()`")

    def begin_nested(self) -> NoReturn:
        self._refuse("begin_nested()", "`db.savepoint()`")

    def commit(self) -> NoReturn:
        self._refuse("commit()", "the end of the `db.transaction()` block")

    def rollback(self) -> NoReturn:
        self._refuse("rollback()", "an exception that leaves the `db.transaction()` block")

    def close(self) -> NoReturn:
        self._refuse("close()", "the end of the `db.transaction()` block")

    def reset(self) -> NoReturn:
        self._refuse("reset()", "an exception that leaves the `db.transaction()` block")

    def invalidate(self) -> NoReturn:
        self._refuse("invalidate()", "an exception that leaves the `db.transaction()` block")

    def _commit(self, connection: Connection) -> None:
        # `Session.commit` would do the same at twice the price: its objects are about to be detached anyway.
        if self._root is None or connection.get_transaction() is not self._root:
            raise DatabaseError("the connection was committed or rolled back inside db.transaction(); leave that to it")
        self._root.commit()

    @staticmethod
    def _refuse(call: str, instead: str) -> NoReturn:
        raise DatabaseError(f"session.{call} is not for a session of db.transaction(); use {instead}")


class ReadSession(Session):
    """The session of one `db.read()` block, whose every use of the database asks `gate` for the engine."""

    def __init__(self, *, gate: Callable[[], Engine], **options: Any) -> None:  # noqa: ANN401  # SQLAlchemy's own
        super().__init__(**options)
        self._gate = gate
        self.connected: Connection | None = None

    def get_bind(self, *_: Any, **__: Any) -> Engine:  # noqa: ANN401  # whatever is asked for, there is one
        return self._gate()

    def end(self) -> None:
        """Give the connection back; one on which that fails is dropped."""
        with _dropped_on_error(self.connected):
            self.close()


@contextmanager
def _dropped_on_error(connection: Connection | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if connection is not None and not connection.closed:
            connection.invalidate()
            connection.close()
        raise


@event.listens_for(TransactionSession, "after_begin")
def _after_begin(session: TransactionSession, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.parent is None:
        session.begun(connection)


@event.listens_for(ReadSession, "after_begin")
def _after_begin_to_read(session: ReadSession, _: SessionTransaction, connection: Connection) -> None:
    session.connected = connection
