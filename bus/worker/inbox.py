"""The inbox: records which messages a `once=True` listener handled, in the transaction of its effects."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from sqlalchemy import Connection, Delete, column, delete, select, table, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from bus.errors import Discard
from infra.db import Database

PRUNED_AT_ONCE = 500
"""The largest number of inbox rows that one call of `prune` deletes."""

INBOX = table("beneath_inbox", column("listener"), column("message_id"), column("handled_at"))


class Time(Protocol):
    """A source of the time that is the same in all processes: the queue, or a clock."""

    def time(self) -> float:
        """Return the time in seconds since the epoch."""
        ...


class AlreadyHandled(Discard):
    """Another attempt at the same message has committed; this one must be rolled back.

    A `Discard`, because middleware must not take it for a failure.
    """


class _CommitObserver:
    """A participant that reports a commit, also if the task that waits for the commit is cancelled."""

    def __init__(self, committed: Callable[[], None]) -> None:
        self._committed = committed

    def savepoint(self) -> object:
        return None

    def rollback_to(self, mark: object) -> None: ...

    async def before_commit(self) -> None: ...

    async def after_commit(self) -> None:
        self._committed()

    async def after_rollback(self) -> None: ...


class Inbox:
    """Makes the database effects and publishes of a `once=True` handler happen once per message."""

    def __init__(self, db: Database, clock: Time, *, retention: float) -> None:
        self._db = db
        self._clock = clock
        self._retention = retention

    async def handled(self, listeners: tuple[str, ...], message_id: str) -> bool:
        """Return whether the inbox has the message, under any of the listener's names."""
        query = select(INBOX.c.listener).where(INBOX.c.message_id == message_id, INBOX.c.listener.in_(listeners))
        async with self._db.read() as session:
            return (await session.execute(query)).first() is not None

    @asynccontextmanager
    async def once(
        self, listener: str, message_id: str, committed: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """Run the block in a transaction that inserts the inbox row when it begins.

        If a middleware has opened a transaction, the block joins it, and the row is inserted at once.

        `committed` is called right after the commit, before a cancellation can arrive.

        Raises:
            AlreadyHandled: another attempt inserted the row first; the block is rolled back.
        """
        duplicate = False

        def insert_row(connection: Connection) -> None:
            nonlocal duplicate
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(INBOX).values(listener=listener, message_id=message_id, handled_at=self._clock.time())
            if connection.execute(statement.on_conflict_do_nothing()).rowcount == 0:
                duplicate = True
                raise AlreadyHandled(message_id)

        try:
            async with self._db.transaction() as transaction:
                if transaction.begun:
                    await (await transaction.connection()).run_sync(insert_row)
                else:
                    transaction.on_begin(insert_row)
                transaction.participant(self, lambda: _CommitObserver(committed))
                yield
                if duplicate:
                    raise AlreadyHandled(message_id)  # noqa: TRY301 - the `except` below adds the listener
        except Exception as error:
            # The handler may have caught or wrapped AlreadyHandled; the transaction is rolled back all the same.
            if duplicate:
                raise AlreadyHandled(f"{listener} has handled {message_id} already") from error
            raise

    async def prune(self) -> int:
        """Delete rows older than the retention, the oldest first, in one short transaction; return how many.

        Call it again if it returns `PRUNED_AT_ONCE`: there may be more.
        """
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(pruning(self._clock.time() - self._retention))
            return int(getattr(result, "rowcount", 0))


def pruning(horizon: float) -> Delete:
    """Return the statement that deletes the oldest rows before `horizon`, `PRUNED_AT_ONCE` at most."""
    oldest = (
        select(INBOX.c.listener, INBOX.c.message_id)
        .where(INBOX.c.handled_at < horizon)
        .order_by(INBOX.c.handled_at)
        .limit(PRUNED_AT_ONCE)
        .with_for_update(skip_locked=True)  # several workers may prune at once
    )
    return delete(INBOX).where(tuple_(INBOX.c.listener, INBOX.c.message_id).in_(oldest))
