"""The interface of objects that take part in a transaction beside its rows."""

from typing import Protocol


class Participant(Protocol):
    """An object that commits and rolls back together with a transaction, such as a buffer of messages to publish."""

    def savepoint(self) -> object:
        """Return a mark of the present state for `rollback_to`. The first call comes while the participant is empty."""
        ...

    def rollback_to(self, mark: object) -> None:
        """Drop everything added since `mark`."""
        ...

    async def before_commit(self) -> None:
        """Do the work that must happen inside the transaction, which is still ambient and may be used.

        It is called at least once, and again as long as `Transaction.participant` was called during the previous round;
        a later call processes only what was added since. An exception rolls the transaction back and leaves the block.
        """
        ...

    async def after_commit(self) -> None:
        """Do the work that may only happen after COMMIT; the transaction is no longer ambient.

        It runs before the outermost block exits. An exception is logged and does not undo the commit.
        """
        ...

    async def after_rollback(self) -> None:
        """Do the work that follows a rollback or an indeterminate commit. An exception is logged."""
        ...
