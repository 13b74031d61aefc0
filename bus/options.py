"""The options of the bus and its worker, with their defaults."""

from dataclasses import dataclass

from bus.codec import check_header_name
from infra.mq.limits import MAX_DELAY, check_count, check_number, shown

MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BusOptions:
    """The options of a bus and its worker. Times are in seconds, sizes in bytes.

    Raises:
        ValueError: an option has the wrong type or is out of range.
    """

    concurrency: int = 16
    """Handlers of one listener that run at once in this process; a listener's own option takes precedence."""

    prefetch: int = 200
    """Claims that this process holds at most ahead of running handlers."""

    timeout: float | None = 60.0
    """How long an attempt of an async handler may take, None for no limit; a listener's own option takes precedence."""

    grace: float = 30.0
    """How long a shutdown waits for running handlers before it cancels them."""

    propagate: frozenset[str] = frozenset()
    """Names of headers that pass from an event to the events that its listeners publish."""

    max_payload: int = 1024 * 1024
    """The largest encoded message, headers included; the limit of the queue's driver may be lower."""

    max_stall: float = 60.0
    """How long a handler may block the event loop before its worker counts as dead."""

    renew_every: float = 3.0
    """The time between two renewals of the worker's lease."""

    recover_every: float = 2.0
    """The time between two polls for dead workers and parked deliveries."""

    connect_timeout: float = 30.0
    """How long `start()` waits for an unavailable queue."""

    inbox_retention: float = 7 * 24 * 3600.0
    """How long the inbox keeps the ids of messages that a `once=True` listener has handled."""

    max_crashes: int = 3
    """Crashes after which a delivery becomes a dead letter: deaths of its worker while the delivery ran alone."""

    def __post_init__(self) -> None:
        """Check every option."""
        for name, least in (("concurrency", 1), ("prefetch", 0), ("max_payload", 1), ("max_crashes", 1)):
            check_count(getattr(self, name), f"BusOptions.{name}", least=least, most=MAX_COUNT)
        for name in ("max_stall", "renew_every", "recover_every", "connect_timeout"):
            check_number(getattr(self, name), f"BusOptions.{name}", least=0, most=MAX_DELAY, above=True)
        for name in ("grace", "inbox_retention"):
            check_number(getattr(self, name), f"BusOptions.{name}", least=0, most=MAX_DELAY)
        if not isinstance(self.propagate, frozenset):
            raise ValueError(f"BusOptions.propagate must be a frozenset of names, not {shown(self.propagate)}")  # noqa: TRY004 - as above
        for each in self.propagate:
            check_header_name(each, "a name in BusOptions.propagate")
        if self.timeout is not None:
            check_number(self.timeout, "BusOptions.timeout", least=0, most=MAX_DELAY, above=True)
