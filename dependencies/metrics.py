"""Metrics of the bus, the queue and the outbox, as samples for telemetry."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Literal

from bus import Bus, BusMetrics, ListenerMetrics
from infra.mq import MessageQueue, SubscriptionStats
from infra.telemetry import Sample

_GAUGES = frozenset({"running", "lag_seconds"})
_HELP = {
    # Of the bus, in this process since its start.
    "published": "Events accepted: committed, or sent.",
    "publish_failures": "Publishes that the queue refused, or has not accepted yet.",
    "outbox_rejected": "Outbox rows that the queue refused permanently.",
    "broadcasts_sent": "Broadcasts sent.",
    "broadcasts_dropped": "Broadcasts of transactions that were not sent.",
    "broadcasts_received": "Broadcasts received from other processes.",
    "broadcast_gaps": "Times in which broadcasts may have been missed.",
    "broadcast_failures": "Broadcast listeners that raised, and broadcasts that could not be decoded.",
    "takeovers": "Deliveries taken over from dead workers.",
    "loop_stalls": "Times that the event loop was blocked.",
    "heartbeat_failures": "Errors of the heartbeat thread itself.",
    "queue_errors": "Calls to the queue that failed.",
    # Of one async listener, in this process since its start.
    "handled": "Deliveries handled, discarded ones included.",
    "failed": "Attempts that failed.",
    "timed_out": "Attempts that failed by their timeout.",
    "deferred": "Deliveries deferred by RetryLater.",
    "discarded": "Deliveries ended by Discard.",
    "expired": "Deliveries ended because their event had expired.",
    "parked": "Deliveries parked: this process does not know the event.",
    "dead": "Deliveries that became dead letters.",
    "fenced": "Outcomes that the queue ignored: the delivery had another owner by then.",
    "running": "Handlers running now.",
    "busy_seconds": "Seconds spent in handlers, waiting included.",
    "lag_seconds": "Seconds from publish to the start of the latest handler.",
}
_QUEUE_HELP = "Deliveries in the queue, over all processes, by listener and state."
_TASK_HELP = "Failures of a background task of the bus in this process since its start."
_FAILING_HELP = "Failures in a row of a background task of the bus; 0 while it makes progress."
_STATES = ("ready", "retrying", "scheduled", "in_flight", "parked", "blocked", "dead")


def bus_samples(bus: Bus) -> Iterator[Sample]:
    """Yield every counter of `bus.metrics`."""
    for name, value in _numbers(bus.metrics):
        yield Sample(f"bus_{name}", _HELP[name], _kind(name), value, {})
    for listener, metrics in list(bus.metrics.listeners.items()):
        for name, value in _numbers(metrics):
            yield Sample(f"listener_{name}", _HELP[name], _kind(name), value, {"listener": listener})


def task_samples(bus: Bus) -> Iterator[Sample]:
    """Yield the failures of the bus's background tasks."""
    for each in bus.background_tasks:
        labels = {"task": each.name}
        yield Sample("bus_task_failures", _TASK_HELP, "counter", each.failures_total, labels)
        yield Sample("bus_task_failing", _FAILING_HELP, "gauge", each.failures, labels)


async def queue_samples(mq: MessageQueue) -> list[Sample]:
    """Return the deliveries of each subscription. Raises the errors of `MessageQueue.stats`."""
    return [sample for each in await mq.stats() for sample in _subscription(each, mq.time())]


async def outbox_samples(bus: Bus) -> list[Sample]:
    """Return the number and age of the outbox's rows, which are 0 if the queue is in the application's database."""
    waiting, oldest = await bus.outbox_backlog()
    age = 0.0 if oldest is None else max(0.0, bus.mq.time() - oldest)
    rejected = await bus.outbox_rejected()
    return [
        Sample("outbox_rows", "Events that wait in the outbox for the queue.", "gauge", waiting, {}),
        Sample("outbox_oldest_seconds", "Age of the oldest event that waits in the outbox.", "gauge", age, {}),
        Sample("outbox_rejected_rows", "Outbox rows that the queue refused permanently.", "gauge", rejected, {}),
    ]


def _subscription(each: SubscriptionStats, now: float) -> Iterator[Sample]:
    labels = {"listener": each.name}
    for state in _STATES:
        yield Sample("queue_deliveries", _QUEUE_HELP, "gauge", getattr(each, state), {**labels, "state": state})
    oldest = 0.0 if each.oldest is None else max(0.0, now - each.oldest)
    yield Sample(
        "queue_oldest_seconds", "Age of the oldest unfinished delivery that is not scheduled.", "gauge", oldest, labels
    )
    yield Sample("queue_workers", "Live workers that have the listener.", "gauge", each.workers, labels)
    yield Sample("queue_paused", "1 while the listener is paused, else 0.", "gauge", each.paused, labels)


def _numbers(metrics: BusMetrics | ListenerMetrics) -> Iterator[tuple[str, float]]:
    for each in fields(metrics):
        value = getattr(metrics, each.name)
        if isinstance(value, int | float):
            yield each.name, value


def _kind(name: str) -> Literal["counter", "gauge"]:
    return "gauge" if name in _GAUGES else "counter"
