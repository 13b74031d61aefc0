"""What retiring a subscription has in common on both dialects."""

from collections.abc import Collection, Iterable

from infra.mq.refusals import in_use

COUNTED = 1000
"""The number up to which a backlog is counted for an error message."""


def refuse_if_used(name: str, names: Collection[str], live: Iterable[tuple[str, frozenset[str]]]) -> None:
    """Check that no live worker, stated with its id and subscriptions, has one of `names`, those of the subscription.

    Raises:
        ListenerInUse: a worker has one.
    """
    for worker, subscriptions in live:
        if not subscriptions.isdisjoint(names):
            raise in_use(name, worker)


def interrupted(name: str, event: str, backlog: str) -> str:
    """Return the warning about a retirement that was begun and is not complete; an empty `event` means all events."""
    return (
        f"retiring {name}{f' (event {event})' if event else ''} was begun and is not complete: "
        f"run `beneath bus retire` again with --backlog {backlog}"
    )
