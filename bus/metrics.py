"""The counters of one process: plain numbers without a metrics library, so that counting costs one addition."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ListenerMetrics:
    """The counters of one durable listener in this process, since its start."""

    handled: int = 0
    failed: int = 0
    timed_out: int = 0
    deferred: int = 0
    discarded: int = 0
    expired: int = 0
    parked: int = 0
    dead: int = 0
    fenced: int = 0
    running: int = 0
    busy_seconds: float = 0.0
    """Time spent in handlers, in seconds, including the time in which they awaited."""

    lag_seconds: float = 0.0
    """Time from the publish to the start of the latest attempt, in seconds, also if that was a retry."""


@dataclass(slots=True)
class BusMetrics:
    """The counters of this process, since its start."""

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
