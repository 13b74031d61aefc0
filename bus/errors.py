"""What the bus raises, and what a handler raises to steer it."""

from datetime import timedelta

from infra.mq.limits import check_delay


class BusError(Exception):
    """Base of the bus's own errors."""


class InvalidEvent(BusError):
    """A class or an object cannot be published or listened to; the message says what is wrong with it."""


class InvalidListener(BusError):
    """A handler cannot be registered; the message names it and what was expected."""


class BusNotStarted(BusError):
    """Something was published before `start()`, or after `close()`."""


class BusFrozen(BusError):
    """A listener was added after `start()`."""


class PublishTooDeep(BusError):
    """Sync listeners publish in a circle; the message names the chain."""


class PublishRejected(BusError):
    """The event is too large, or the queue refused it; nothing of it was stored."""


class PublishIndeterminate(BusError):
    """The connection to the queue broke while publishing: the event may have been accepted.

    An event that was published with an `id` can be published again with it within the dedupe window (2 minutes by
    default): it is accepted once.
    """

    def __init__(self, message: str, id: str) -> None:  # noqa: A002 - the name that publish() gives it
        super().__init__(message)
        self.id = id


class CancelFailed(BusError):
    """The queue did not say that a delayed event is cancelled; it is safe to ask again."""


class UndecodablePayload(BusError):
    """A message's bytes do not make the event that they are said to be."""


class UnknownEvent(BusError):
    """A message's event, or its version, is not known to this process's code."""

    def __init__(self, message: str, needs: str | None = None) -> None:
        super().__init__(message)
        self.needs = needs
        """What code must know to read the message, as in `Settlement.needs`; None: its event."""


class RetryLater(Exception):
    """Raised by an async handler: call me again in `delay` seconds. Not a failure; attempts stay unchanged.

    Raises:
        ValueError: the delay is no number of seconds (or timedelta) from 0 to 100 years.
    """

    def __init__(self, delay: float | timedelta, reason: str = "") -> None:
        self.delay = check_delay(delay, "the delay of RetryLater")
        super().__init__(f"retry in {self.delay:g} s" + (f": {reason}" if reason else ""))
        self.reason = reason


class Discard(Exception):
    """Raised by an async handler: this event will never be handled, and that is right. Counted and logged."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
