"""What is rolled back together: a savepoint's rows, and the marks of its participants."""

from collections.abc import Hashable, Mapping

from sqlalchemy.orm import SessionTransaction

from infra.db.participant import Participant


class Scope:
    """The transaction as a whole (`outer` is None), or a savepoint in `outer`."""

    def __init__(self, outer: "Scope | None", nested: SessionTransaction | None = None) -> None:
        self.outer = outer
        self.nested = nested
        self.cause: BaseException | None = None
        self._marks: dict[Hashable, object] = {}

    def mark(self, cause: BaseException) -> None:
        """Make it rollback-only; the first cause is the one that counts."""
        if self.cause is None:
            self.cause = cause

    def mark_all(self, cause: BaseException) -> None:
        """Make it and all around it rollback-only."""
        scope: Scope | None = self
        while scope is not None:
            scope.mark(cause)
            scope = scope.outer

    def joined(self, key: Hashable, participant: Participant) -> None:
        """Note the participant's present state here, and wherever it was not there yet when the savepoint began."""
        scope: Scope | None = self
        while scope is not None and scope.outer is not None and key not in scope._marks:  # noqa: SLF001  # our own kind
            scope._marks[key] = participant.savepoint()  # noqa: SLF001
            scope = scope.outer

    def roll_back(self, participants: Mapping[Hashable, Participant]) -> None:
        """Return every participant to its state at the beginning of this savepoint."""
        for key, participant in participants.items():
            participant.rollback_to(self._marks[key])
