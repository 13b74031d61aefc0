"""What the database can answer instead of doing what it was asked."""

from collections.abc import Sequence


class DatabaseError(Exception):
    """Base of every error that `infra.db` raises. Its text is one line for people: what is wrong, where, what to do."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached, locked or written to now; the transaction at hand changed nothing."""


class NoTransaction(DatabaseError):
    """What was asked for needs a transaction that is under way, and there is none."""


class TransactionNotOwned(DatabaseError):
    """A task used a transaction that another task opened."""


class TransactionRolledBack(DatabaseError):
    """The block ended normally, but its work could not be kept and was rolled back; the cause is chained."""


class CommitIndeterminate(DatabaseError):
    """The connection was lost during COMMIT: the transaction may be committed, or not. Only the rows can tell."""


class MigrationPending(DatabaseError):
    """The database lacks migrations that this code needs."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self.revisions = tuple(revisions)
        super().__init__(
            f"the database lacks {len(self.revisions)} migration(s): {', '.join(self.revisions)}; "
            "run `beneath migrate up`"
        )


class MigrationNewer(DatabaseError):
    """The database has migrations that this code does not know."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self.revisions = tuple(revisions)
        super().__init__(
            f"the database is newer than this code: it is at {', '.join(self.revisions)}, which this code does not "
            "have; nothing was changed; install the version that wrote it, or restore a backup"
        )
