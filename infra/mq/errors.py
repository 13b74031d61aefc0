"""The errors that a message queue raises."""


class QueueError(Exception):
    """Base of every error that a message queue raises."""


class QueueUnavailable(QueueError):
    """The queue cannot be reached or used now; nothing was changed by a call that only reads or claims."""


class QueueRejected(QueueError):
    """The queue refused the call and stored nothing of it."""


class MessageTooLarge(QueueRejected):
    """A message is larger than this queue can hold."""


class QueueIndeterminate(QueueError):
    """The connection was lost after the call was sent: it may have taken effect, or not."""


class QueueClosed(QueueError):
    """The queue or the consumer was used before `open()` or after `close()`."""


class SubscriptionConflict(QueueError):
    """A declared subscription contradicts the existing one of that name."""


class SubscriptionNotFound(QueueError):
    """No subscription has that name."""


class ListenerInUse(QueueError):
    """A subscription cannot be retired while a live worker has its listener, or while it has a backlog."""


class DeadLetterNotFound(QueueError):
    """No dead letter has that id."""


class MailboxNotBlocked(QueueError):
    """The ordering key of that subscription is not blocked."""
