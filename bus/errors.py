"""The errors of the bus, and the exceptions by which a handler defers or discards its delivery."""

from datetime import timedelta

from infra.mq.limits import check_delay


class BusError(Exception):
    """Base class of the bus's errors."""


class InvalidEvent(BusError):
    """A class or an object cannot be published or listened to; the message says what is wrong with it."""


class InvalidListener(BusError):
    """A handler cannot be registered; the message names it and what was expected."""


class BusNotStarted(BusError):
    """The bus was used before `start()`, or after `close()`."""


class BusFrozen(BusError):
    """A listener was added after `start()`, or `start()` was called twice."""


class PublishTooDeep(BusError):
    """Sync listeners publish in a cycle; the message names the chain of events."""


class PublishRejected(BusError):
    """The event is too large, or the queue or the database refused it; nothing was stored."""


class PublishIndeterminate(BusError):
    """The answer to a publish or commit was lost: the event may have been accepted.

    An event that was published with an `id` can be published again with it within the dedupe window (2 minutes by
    default): the queue accepts it once.
    """

    def __init__(self, message: str, id: str) -> None:  # noqa: A002 - named like the argument of publish()
        super().__init__(message)
        self.id = id


class CancelFailed(BusError):
    """The queue did not confirm the cancellation of a delayed event; calling `cancel` again is safe."""


class UndecodablePayload(BusError):
    """A message cannot be decoded: its bytes are not a frame, or its payload is not that of the frame's event."""


class UnknownEvent(BusError):
    """This process's code does not know a message's event, its version, or the version of its frame."""

    def __init__(self, message: str, needs: str | None = None) -> None:
        super().__init__(message)
        self.needs = needs
        """What a worker must know to decode the message, as in `Settlement.needs`; None means the event's name."""


class RetryLater(Exception):
    """Raised by an async handler to defer its delivery by `delay` seconds; counts no failure.

    Raises:
        ValueError: the delay is not a number of seconds or timedelta between 0 and 100 years.
    """

    def __init__(self, delay: float | timedelta, reason: str = "") -> None:
        self.delay = check_delay(delay, "the delay of RetryLater")
        super().__init__(f"retry in {self.delay:g} s" + (f": {reason}" if reason else ""))
        self.reason = reason


class Discard(Exception):
    """Raised by an async handler to end its delivery without success, on purpose; counted and logged."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
