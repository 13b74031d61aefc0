"""The parts of retiring a subscription that both dialects share."""

from collections.abc import Collection, Iterable

from infra.mq.refusals import in_use

COUNTED = 1000
"""The number up to which a backlog is counted for an error message."""


def refuse_if_used(name: str, names: Collection[str], live: Iterable[tuple[str, frozenset[str]]]) -> None:
    """Check that no live worker has the subscription; `names` are its name and aliases.

    `live` has the id and the subscriptions of each live worker.

    Raises:
        ListenerInUse: a live worker has it.
    """
    for worker, subscriptions in live:
        if not subscriptions.isdisjoint(names):
            raise in_use(name, worker)


def interrupted(name: str, event: str, backlog: str) -> str:
    """Return the warning about an incomplete retirement; an empty `event` stands for the whole listener."""
    return (
        f"retiring {name}{f' (event {event})' if event else ''} was begun and is not complete: "
        f"run `beneath bus retire` again with --backlog {backlog}"
    )
