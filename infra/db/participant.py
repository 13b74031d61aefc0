"""What takes part in a transaction beside its rows."""

from typing import Protocol


class Participant(Protocol):
    """Something that is kept or dropped together with a transaction, such as a buffer of messages to publish."""

    def savepoint(self) -> object:
        """Return a mark of the present state, to which `rollback_to` can return. Called first when it is empty."""
        ...

    def rollback_to(self, mark: object) -> None:
        """Forget what was added since `mark`."""
        ...

    async def before_commit(self) -> None:
        """Do what belongs inside the transaction, which is still the ambient one and may be used.

        Called at least once, and again for as long as anybody asked the transaction for a participant meanwhile: a
        second call has only what is new to do. An exception rolls the transaction back and goes on to its block.
        """
        ...

    async def after_commit(self) -> None:
        """Do what may only happen once the transaction is kept; it is no longer the ambient one.

        Runs before the outermost block exits. An exception is logged: the transaction is kept all the same.
        """
        ...

    async def after_rollback(self) -> None:
        """Do what is due when the transaction was not kept, or nobody knows. An exception is logged."""
        ...
