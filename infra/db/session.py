"""The ORM sessions of transactions and reads; only the end of their block ends them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.orm import Session, SessionTransaction

from infra.db.errors import DatabaseError


class TransactionSession(Session):
    """A session for one transaction.

    The session calls `gate` for the engine before each use of the database: `gate` acquires the write lock and raises
    in any task but the owner. `on_begin` is called once, right after BEGIN, and `on_failure` with the error of a flush.
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

    def get_bind(self, *_: Any, **__: Any) -> Engine:  # noqa: ANN401  # the same engine for every mapper
        return self._gate()

    def flush(self, objects: Any = None) -> None:  # noqa: ANN401  # SQLAlchemy's signature
        try:
            super().flush(objects)
        except BaseException as error:
            self._on_failure(error)
            raise

    def enter_savepoint(self) -> SessionTransaction:
        """Flush and begin a savepoint; SAVEPOINT is sent before the first statement inside it."""
        return super().begin(nested=True)

    def end(self, connection: Connection | None, *, commit: bool) -> None:
        """Commit the flushed changes or roll back, and return the connection to the pool in any case."""
        # SQLAlchemy considers a transaction ended whose COMMIT or ROLLBACK failed; in the database it may be open.
        try:
            if commit and connection is not None:
                with _dropped_on_error(connection):
                    self._commit(connection)
        finally:
            with _dropped_on_error(connection):
                super().close()

    def begun(self, connection: Connection) -> None:
        """Record that the transaction has begun on `connection`."""
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
        # `Session.commit` takes twice as long, for objects that are about to be detached.
        if self._root is None or connection.get_transaction() is not self._root:
            raise DatabaseError(
                "the connection was committed or rolled back inside db.transaction(); let the end of the block do it"
            )
        self._root.commit()

    @staticmethod
    def _refuse(call: str, instead: str) -> NoReturn:
        raise DatabaseError(f"session.{call} is not allowed inside db.transaction(); use {instead}")


class ReadSession(Session):
    """The session of one `db.read()` block; it calls `gate` for the engine before each use of the database."""

    def __init__(self, *, gate: Callable[[], Engine], **options: Any) -> None:  # noqa: ANN401  # SQLAlchemy's own
        super().__init__(**options)
        self._gate = gate
        self.connected: Connection | None = None

    def get_bind(self, *_: Any, **__: Any) -> Engine:  # noqa: ANN401  # the same engine for every mapper
        return self._gate()

    def end(self) -> None:
        """Return the connection to the pool; close it if that fails."""
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
