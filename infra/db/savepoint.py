"""The scope of a rollback: a transaction or a savepoint, with the state of its participants."""

from collections.abc import Hashable, Mapping

from sqlalchemy.orm import SessionTransaction

from infra.db.participant import Participant


class RollbackScope:
    """The transaction as a whole (`outer` is None), or a savepoint in `outer`."""

    def __init__(self, outer: "RollbackScope | None", nested: SessionTransaction | None = None) -> None:
        self.outer = outer
        self.nested = nested
        self.cause: BaseException | None = None
        self._marks: dict[Hashable, object] = {}

    def mark(self, cause: BaseException) -> None:
        """Make this scope rollback-only; only the first `cause` is kept."""
        if self.cause is None:
            self.cause = cause

    def mark_all(self, cause: BaseException) -> None:
        """Make this scope and all outer scopes rollback-only."""
        scope: RollbackScope | None = self
        while scope is not None:
            scope.mark(cause)
            scope = scope.outer

    def joined(self, key: Hashable, participant: Participant) -> None:
        """Save the participant's state for this savepoint and for outer ones that began before the participant."""
        scope: RollbackScope | None = self
        while scope is not None and scope.outer is not None and key not in scope._marks:  # noqa: SLF001  # the same class
            scope._marks[key] = participant.savepoint()  # noqa: SLF001
            scope = scope.outer

    def roll_back(self, participants: Mapping[Hashable, Participant]) -> None:
        """Restore every participant to its state at the beginning of this savepoint."""
        for key, participant in participants.items():
            participant.rollback_to(self._marks[key])
