"""Plain counters, read when somebody asks: counting costs an addition, and no library."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ListenerMetrics:
    """What this process did for one durable listener since it started."""

    handled: int = 0
    failed: int = 0
    timed_out: int = 0
    deferred: int = 0
    discarded: int = 0
    parked: int = 0
    dead: int = 0
    fenced: int = 0
    running: int = 0
    busy_seconds: float = 0.0
    """Time spent in handlers, in seconds, waiting included."""

    lag_seconds: float = 0.0
    """From publish to the start of the latest handler, in seconds; retries count from their first publish."""


@dataclass(slots=True)
class BusMetrics:
    """What this process did since it started."""

    published: int = 0
    publish_failures: int = 0
    outbox_rejected: int = 0
    broadcasts_sent: int = 0
    broadcasts_dropped: int = 0
    broadcasts_received: int = 0
    broadcast_gaps: int = 0
    broadcast_failures: int = 0
    takeovers: int = 0
    loop_stalls: int = 0
    heartbeat_failures: int = 0
    queue_errors: int = 0
    listeners: dict[str, ListenerMetrics] = field(default_factory=dict)
