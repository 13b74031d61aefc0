"""The entries of the outbox: one row each, a message to publish or the id of a message to cancel."""

from dataclasses import dataclass
from enum import StrEnum

from infra.mq import Message


class EntryKind(StrEnum):
    """The purpose of a row, which determines the process that may send it."""

    PUBLISH = "publish"
    """A message that only the holder of the relay lease sends, in row order: ordered, or with an explicit id.

    The latter may follow a cancellation of the same id, and must not overtake it.
    """

    DIRECT = "direct"
    """A message that the committing process pushes; the relay sends it if that process does not."""

    CANCEL = "cancel"
    """The cancellation of a delayed message in the queue."""

    REJECTED = "rejected"
    """A message or cancellation that the queue refused permanently; kept for `beneath bus outbox`."""


class MessageState(StrEnum):
    """The state of a message id, by its outbox rows."""

    SCHEDULED = "scheduled"
    """The message is delayed, and not sent yet."""

    CANCELLED = "cancelled"
    """The message is cancelled; the relay has not cancelled it in the queue yet."""

    REJECTED = "rejected"
    """The message is delayed, and the queue refused it."""

    DUE = "due"
    """The message was not delayed, or is due: it can no longer be cancelled."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One outbox row: a message to publish, or the id of one to cancel."""

    id: int
    """The row's id; 0 for a row that was just written: rows of kind DIRECT are identified by `message_id`."""

    kind: EntryKind
    message_id: str
    message: Message | None

    @property
    def key(self) -> int | str:
        """The unique key of the row."""
        return self.message_id if self.kind is EntryKind.DIRECT else self.id

    @property
    def is_delayed(self) -> bool:
        """Whether the row has a message with a due time, which can be cancelled."""
        return self.message is not None and self.message.due_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Which kinds of rows wait to be sent."""

    cancellations: bool
    ordered: bool
    first_direct: int | None
    last_direct: int | None
    """The lowest and the highest id of rows of kind DIRECT."""
