"""What the bus and the queue count, as samples for telemetry."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Literal

from bus import Bus
from bus.metrics import BusMetrics, ListenerMetrics
from infra.clock import Clock
from infra.mq import MessageQueue, SubscriptionStats
from infra.telemetry import Sample

_GAUGES = frozenset({"running", "lag_seconds"})
_BUS_HELP = "What the bus did in this process since its start."
_LISTENER_HELP = "What one durable listener did in this process since its start."
_QUEUE_HELP = "Deliveries in the queue, over all processes, by listener and state."
_TASK_HELP = "Failures of a background task of the bus in this process since its start."
_FAILING_HELP = "Failures in a row of a background task of the bus; 0 while it makes progress."
_STATES = ("ready", "retrying", "scheduled", "in_flight", "parked", "blocked", "dead")


def bus_samples(bus: Bus) -> Iterator[Sample]:
    """Yield every counter of `bus.metrics`."""
    for name, value in _numbers(bus.metrics):
        yield Sample(f"bus_{name}", _BUS_HELP, _kind(name), value, {})
    for listener, metrics in list(bus.metrics.listeners.items()):
        for name, value in _numbers(metrics):
            yield Sample(f"listener_{name}", _LISTENER_HELP, _kind(name), value, {"listener": listener})


def task_samples(bus: Bus) -> Iterator[Sample]:
    """Yield how the bus's background tasks are doing."""
    for each in bus.background_tasks:
        labels = {"task": each.name}
        yield Sample("bus_task_failures", _TASK_HELP, "counter", each.failures_total, labels)
        yield Sample("bus_task_failing", _FAILING_HELP, "gauge", each.failures, labels)


async def queue_samples(mq: MessageQueue) -> list[Sample]:
    """Return what every subscription holds; raises what `MessageQueue.stats` does."""
    return [sample for each in await mq.stats() for sample in _subscription(each, mq.time())]


async def outbox_samples(bus: Bus, clock: Clock) -> list[Sample]:
    """Return what waits in the outbox; nothing ever does where the queue is in the application's database."""
    waiting, oldest = await bus.outbox_backlog()
    age = 0.0 if oldest is None else max(0.0, clock.time() - oldest)
    rejected = await bus.outbox_rejected()
    return [
        Sample("outbox_rows", "Events that wait in the outbox for the queue.", "gauge", waiting, {}),
        Sample("outbox_oldest_seconds", "Age of the oldest of them.", "gauge", age, {}),
        Sample("outbox_rejected_rows", "Rows that the queue refused for good.", "gauge", rejected, {}),
    ]


def _subscription(each: SubscriptionStats, now: float) -> Iterator[Sample]:
    labels = {"listener": each.name}
    for state in _STATES:
        yield Sample("queue_deliveries", _QUEUE_HELP, "gauge", getattr(each, state), {**labels, "state": state})
    oldest = 0.0 if each.oldest is None else max(0.0, now - each.oldest)
    yield Sample("queue_oldest_seconds", "Age of the oldest unfinished delivery.", "gauge", oldest, labels)
    yield Sample("queue_workers", "Live workers that have the listener.", "gauge", each.workers, labels)
    yield Sample("queue_paused", "Whether the listener is paused.", "gauge", each.paused, labels)


def _numbers(metrics: BusMetrics | ListenerMetrics) -> Iterator[tuple[str, float]]:
    for each in fields(metrics):
        value = getattr(metrics, each.name)
        if isinstance(value, int | float):
            yield each.name, value


def _kind(name: str) -> Literal["counter", "gauge"]:
    return "gauge" if name in _GAUGES else "counter"
