"""The event bus: publishes typed events to listeners, inside and outside of transactions.

    from bus import Bus, Delivery, Discard, Retry, RetryLater

Services use `Bus` as `docs/guide.md` shows; `docs/guarantees.md` has its guarantees. The bus imports `infra` alone.
"""

from bus.bus import Bus
from bus.codec import check_header_name, decode_frame
from bus.delivery import Delivery, current_cause, log_context
from bus.errors import (
    BusError,
    BusFrozen,
    BusNotStarted,
    CancelFailed,
    Discard,
    InvalidEvent,
    InvalidListener,
    PublishIndeterminate,
    PublishRejected,
    PublishTooDeep,
    RetryLater,
    UndecodablePayload,
    UnknownEvent,
)
from bus.events import EventType, Upcaster
from bus.handler_calls import function_name
from bus.listener_options import AsyncOptions, BroadcastOptions, ListenerOptions, OrderedOptions
from bus.listeners import Listener, ListenerKind
from bus.metrics import BusMetrics, ListenerMetrics
from bus.middleware import CallNext, Middleware
from bus.options import BusOptions
from bus.publishing.hooks import PublishHook, Publishing
from bus.publishing.rejected_rows import RejectedRow, RejectedRows
from bus.retry import Retry
from bus.supervisor import BackgroundTaskFailed, TaskState

__all__ = [
    "AsyncOptions",
    "BackgroundTaskFailed",
    "BroadcastOptions",
    "Bus",
    "BusError",
    "BusFrozen",
    "BusMetrics",
    "BusNotStarted",
    "BusOptions",
    "CallNext",
    "CancelFailed",
    "Delivery",
    "Discard",
    "EventType",
    "InvalidEvent",
    "InvalidListener",
    "Listener",
    "ListenerKind",
    "ListenerMetrics",
    "ListenerOptions",
    "Middleware",
    "OrderedOptions",
    "PublishHook",
    "PublishIndeterminate",
    "PublishRejected",
    "PublishTooDeep",
    "Publishing",
    "RejectedRow",
    "RejectedRows",
    "Retry",
    "RetryLater",
    "TaskState",
    "UndecodablePayload",
    "UnknownEvent",
    "Upcaster",
    "check_header_name",
    "current_cause",
    "decode_frame",
    "function_name",
    "log_context",
]
