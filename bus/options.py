"""The bus's own numbers, with their defaults."""

from dataclasses import dataclass

from infra.mq.limits import MAX_DELAY, check_count, check_number

MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BusOptions:
    """How a bus and its worker behave. Times are in seconds, sizes in bytes.

    Raises:
        ValueError: an option has the wrong type or is out of range.
    """

    concurrency: int = 16
    """Handlers of one listener that run at once in this process, unless the listener says otherwise."""

    prefetch: int = 100
    """Claims that this process holds beyond those that can start at once."""

    timeout: float | None = 60.0
    """How long an async handler may take, unless the listener says otherwise; None: for ever."""

    grace: float = 30.0
    """How long a stopping worker waits for running handlers."""

    max_payload: int = 1024 * 1024
    """The largest event as it is sent, headers and all; what the queue's driver takes at most may be less."""

    max_stall: float = 60.0
    """How long a handler may block the event loop before its worker counts as dead."""

    renew_every: float = 3.0
    """Between two renewals of the worker's lease."""

    recover_every: float = 2.0
    """Between two looks for dead workers and parked deliveries."""

    connect_timeout: float = 30.0
    """How long `start()` waits for the queue."""

    inbox_retention: float = 7 * 24 * 3600.0
    """How long a `once=True` listener remembers a message."""

    max_crashes: int = 3
    """Deaths while running alone after which a delivery becomes a dead letter."""

    def __post_init__(self) -> None:
        """Check every option."""
        for name, least in (("concurrency", 1), ("prefetch", 0), ("max_payload", 1), ("max_crashes", 1)):
            check_count(getattr(self, name), f"BusOptions.{name}", least=least, most=MAX_COUNT)
        for name in ("max_stall", "renew_every", "recover_every", "connect_timeout"):
            check_number(getattr(self, name), f"BusOptions.{name}", least=0, most=MAX_DELAY, above=True)
        for name in ("grace", "inbox_retention"):
            check_number(getattr(self, name), f"BusOptions.{name}", least=0, most=MAX_DELAY)
        if self.timeout is not None:
            check_number(self.timeout, "BusOptions.timeout", least=0, most=MAX_DELAY, above=True)
