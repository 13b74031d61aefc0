"""The inbox: which messages a `once=True` listener has handled, kept in the same transaction as what it did."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from sqlalchemy import Connection, Delete, column, delete, select, table, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from infra.db import Database

PRUNED_AT_ONCE = 500
"""How many marks one transaction forgets at most."""

INBOX = table("beneath_inbox", column("listener"), column("message_id"), column("handled_at"))


class Time(Protocol):
    """What tells the time, the same in all processes: a queue, or a clock."""

    def time(self) -> float:
        """Return it, in seconds since the epoch."""
        ...


class AlreadyHandled(Exception):
    """Another attempt at the same message has committed: this one must leave no trace."""


class _Witness:
    """Sees a transaction commit, also when what waits for that is cancelled meanwhile."""

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
    """Makes a handler's database effects, and what it publishes, happen once per message."""

    def __init__(self, db: Database, clock: Time, *, retention: float) -> None:
        self._db = db
        self._clock = clock
        self._retention = retention

    async def handled(self, listeners: tuple[str, ...], message_id: str) -> bool:
        """Return whether the message was handled, under any of the listener's names."""
        query = select(INBOX.c.listener).where(INBOX.c.message_id == message_id, INBOX.c.listener.in_(listeners))
        async with self._db.read() as session:
            return (await session.execute(query)).first() is not None

    @asynccontextmanager
    async def once(
        self, listener: str, message_id: str, committed: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """Run the block in a transaction that carries the mark, from its first use of the database on.

        `committed` is called once that has committed, before anything else can happen.

        Raises:
            AlreadyHandled: somebody else's mark came first; nothing of the block stays.
        """
        duplicate = False

        def mark(connection: Connection) -> None:
            nonlocal duplicate
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(INBOX).values(listener=listener, message_id=message_id, handled_at=self._clock.time())
            if connection.execute(statement.on_conflict_do_nothing()).rowcount == 0:
                duplicate = True
                raise AlreadyHandled(message_id)

        try:
            async with self._db.transaction() as transaction:
                transaction.on_begin(mark)
                transaction.participant(self, lambda: _Witness(committed))
                yield
                if duplicate:
                    raise AlreadyHandled(message_id)  # noqa: TRY301 - the block below words it
        except Exception as error:
            # The handler may have caught, wrapped or logged the refusal: its transaction is gone all the same.
            if duplicate:
                raise AlreadyHandled(f"{listener} has handled {message_id} already") from error
            raise

    async def prune(self) -> int:
        """Forget some of the marks older than the retention, the oldest first; return how many.

        It is one short transaction: with `PRUNED_AT_ONCE` returned there may be more.
        """
        async with self._db.transaction() as transaction:
            result = await transaction.session.execute(pruning(self._clock.time() - self._retention))
            return int(getattr(result, "rowcount", 0))


def pruning(horizon: float) -> Delete:
    """Return the statement that forgets the oldest marks from before `horizon`, some of them."""
    oldest = (
        select(INBOX.c.listener, INBOX.c.message_id)
        .where(INBOX.c.handled_at < horizon)
        .order_by(INBOX.c.handled_at)
        .limit(PRUNED_AT_ONCE)
        .with_for_update(skip_locked=True)  # where several workers can do this at a time
    )
    return delete(INBOX).where(tuple_(INBOX.c.listener, INBOX.c.message_id).in_(oldest))
