"""The errors that every driver raises in the same words."""

from infra.mq.errors import (
    DeadLetterNotFound,
    ListenerInUse,
    MailboxNotBlocked,
    QueueClosed,
    SubscriptionConflict,
    SubscriptionNotFound,
)

RETIRED = "its subscription was retired"
"""The error of a dead letter that a retirement made from a delivery without an error."""


def alias_conflict(name: str, alias: str) -> SubscriptionConflict:
    """Return the error for a name and an alias of it that exist as two subscriptions."""
    return SubscriptionConflict(
        f"{alias} is declared as an alias of {name}, but both subscriptions exist; "
        f"retire one with `beneath bus retire`, such as {alias}"
    )


def order_conflict(name: str, *, ordered: bool) -> SubscriptionConflict:
    """Return the error for a listener whose subscription exists with this `ordered`, and is declared with the other."""
    kind = "an ordered" if ordered else "an unordered"
    return SubscriptionConflict(
        f"{name} exists as {kind} subscription; give the listener a new name, or retire it with `beneath bus retire`"
    )


def no_subscription(name: str) -> SubscriptionNotFound:
    """Return the error for an unknown name."""
    return SubscriptionNotFound(f"no subscription is called {name}; `beneath bus stats` lists them")


def no_event(name: str, event: str) -> SubscriptionNotFound:
    """Return the error for an event that a subscription does not have."""
    return SubscriptionNotFound(f"{name} has no event {event}")


def in_use(name: str, worker: str) -> ListenerInUse:
    """Return the error for a subscription whose listener a live worker has."""
    return ListenerInUse(
        f"{name} is in use by worker {worker}; remove the listener from the code, or shut down that worker"
    )


def has_backlog(name: str, count: int | str, *, at_least: bool = False) -> ListenerInUse:
    """Return the error for a subscription, or an event of it, that still has pending deliveries."""
    more = " or more" if at_least else ""
    return ListenerInUse(
        f"{name} still has {count} deliveries{more}; wait until they are handled, or retire it with "
        "`--backlog discard` or `--backlog dead`"
    )


def not_blocked(name: str, ordering_key: str) -> MailboxNotBlocked:
    """Return the error for an ordering key that is not blocked."""
    return MailboxNotBlocked(f"{name}: the key {ordering_key!r} is not blocked; `beneath bus stats` lists blocked keys")


def not_ordered(name: str) -> MailboxNotBlocked:
    """Return the error for an unordered subscription, which has no blocked keys."""
    return MailboxNotBlocked(f"{name} is not ordered, so it has no blocked keys")


def no_dead_letter(dead_id: str) -> DeadLetterNotFound:
    """Return the error for an unknown id."""
    return DeadLetterNotFound(f"no dead letter has the id {dead_id}; `beneath bus dead list` lists them")


def worker_ended(worker: str, *, closed: bool) -> QueueClosed:
    """Return the error for a call of a consumer that was closed, or has lost its lease."""
    return QueueClosed(f"worker {worker} {'is closed' if closed else 'has lost its lease'}")
