"""The entries of the outbox: one row each, a message to publish or the id of a message to cancel."""

from dataclasses import dataclass
from enum import StrEnum

from infra.mq import Message


class EntryKind(StrEnum):
    """What the queue is to be told."""

    PUBLISH = "publish"
    """A message that only the relay sends, in the order of the rows: an ordered one, or one with an id of its caller's.

    The latter may follow a cancellation of the same id, and must not overtake it.
    """

    DIRECT = "direct"
    """A message that the committing process sends at once; the relay sends what such a process left."""

    CANCEL = "cancel"
    REJECTED = "rejected"
    """A message that the queue refuses for good, kept for `beneath bus outbox`."""


class Standing(StrEnum):
    """What the rows of one message id say."""

    SCHEDULED = "scheduled"
    """It is delayed, and not sent yet."""

    CANCELLED = "cancelled"
    """The queue is still to be told that it is cancelled."""

    REJECTED = "rejected"
    """It is delayed, and the queue refused it."""

    DUE = "due"
    """It was never delayed, or is due: it can no longer be cancelled."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a message to publish, or the id of one to cancel."""

    id: int
    """The row's; 0 where it was just written. One of kind DIRECT is told by its message's id, which is new."""

    kind: EntryKind
    message_id: str
    message: Message | None

    @property
    def key(self) -> int | str:
        """What tells it from all other rows."""
        return self.message_id if self.kind is EntryKind.DIRECT else self.id

    @property
    def is_delayed(self) -> bool:
        """Whether it is a message with a due time, which may be cancelled."""
        return self.message is not None and self.message.due_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What there is to send, as cheaply as it can be found out."""

    cancellations: bool
    carried: bool
    first_direct: int | None
    last_direct: int | None
    """The lowest and the highest id of the rows that their process sends."""
