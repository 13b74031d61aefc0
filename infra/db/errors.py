"""The errors of the database package."""

from collections.abc import Sequence


class DatabaseError(Exception):
    """Base class of the errors of `infra.db`. Its text is one line: what is wrong, where, and what to do."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached, locked or written to at present; the transaction has changed nothing."""


class NoTransaction(DatabaseError):
    """The operation needs an open transaction, and there is none."""


class TransactionNotOwned(DatabaseError):
    """A task used a transaction that another task opened."""


class TransactionRolledBack(DatabaseError):
    """The block ended normally, but its changes were rolled back; the cause is chained."""


class CommitIndeterminate(DatabaseError):
    """The connection was lost during COMMIT: the transaction may be committed or not; only its rows can show that."""


class MigrationPending(DatabaseError):
    """The database lacks migrations that this code needs; `revisions` names them."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self.revisions = tuple(revisions)
        super().__init__(
            f"the database lacks {len(self.revisions)} migration(s): {', '.join(self.revisions)}; "
            "run `beneath migrate up`"
        )


class MigrationNewer(DatabaseError):
    """The database has migrations that this code does not know; `revisions` names them."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self.revisions = tuple(revisions)
        super().__init__(
            f"the database is newer than this code: it is at {', '.join(self.revisions)}, which this code does not "
            "have; nothing was changed; install the version that wrote it, or restore a backup"
        )
