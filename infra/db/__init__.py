"""The database: sessions, the ambient transaction, and migrations (`infra.db.migrate`).

async with db.transaction() as tx:
    tx.session.add(user)
    await bus.publish(UserCreated(...))   # commits or rolls back together with the row

Of `infra` it imports single modules, such as `infra.clock`, and no other package.
"""

from infra.db.database import Database
from infra.db.errors import (
    CommitIndeterminate,
    DatabaseError,
    DatabaseUnavailable,
    MigrationNewer,
    MigrationPending,
    NoTransaction,
    TransactionNotOwned,
    TransactionRolledBack,
)
from infra.db.participant import Participant
from infra.db.transaction import Transaction
from infra.db.violations import Violation, violation_of

__all__ = [
    "CommitIndeterminate",
    "Database",
    "DatabaseError",
    "DatabaseUnavailable",
    "MigrationNewer",
    "MigrationPending",
    "NoTransaction",
    "Participant",
    "Transaction",
    "TransactionNotOwned",
    "TransactionRolledBack",
    "Violation",
    "violation_of",
]
