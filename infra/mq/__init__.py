"""The message queue: the contract between the bus and a queue, and the drivers.

`MessageQueue` and `Consumer` say what every driver must do; `tests/contract/` holds a test for each sentence and runs
over every driver. Drivers make each state change atomic and durable, and decide nothing: policy lives in `bus/`.

The contract is in `queue`, `types`, `errors` and `limits`; the other modules are parts that drivers have in common.

Of `infra` the package imports single modules, such as `infra.clock`; only the SQL driver imports `infra.db`.
"""

from infra.mq.errors import (
    DeadLetterNotFound,
    ListenerInUse,
    MailboxNotBlocked,
    MessageTooLarge,
    QueueClosed,
    QueueError,
    QueueIndeterminate,
    QueueRejected,
    QueueUnavailable,
    SubscriptionConflict,
    SubscriptionNotFound,
)
from infra.mq.queue import REGISTRY_TTL, BroadcastReceiver, Consumer, MessageQueue
from infra.mq.types import (
    BacklogPolicy,
    Claim,
    ClaimedDelivery,
    ClaimLimits,
    DeadLetter,
    Failure,
    Features,
    Message,
    Outcome,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

__all__ = [
    "REGISTRY_TTL",
    "BacklogPolicy",
    "BroadcastReceiver",
    "Claim",
    "ClaimLimits",
    "ClaimedDelivery",
    "Consumer",
    "DeadLetter",
    "DeadLetterNotFound",
    "Failure",
    "Features",
    "ListenerInUse",
    "MailboxNotBlocked",
    "Message",
    "MessageQueue",
    "MessageTooLarge",
    "Outcome",
    "QueueClosed",
    "QueueError",
    "QueueIndeterminate",
    "QueueRejected",
    "QueueUnavailable",
    "Registry",
    "Settlement",
    "Subscription",
    "SubscriptionConflict",
    "SubscriptionNotFound",
    "SubscriptionStats",
    "WorkerInfo",
]
