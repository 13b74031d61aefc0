"""Statistics of subscriptions, from the counts that each dialect reads."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from infra.mq.types import SubscriptionStats

Oldest = float | None
"""The publish time of the oldest delivery; None without deliveries."""


@dataclass(frozen=True, slots=True)
class BacklogCounts:
    """The deliveries of a subscription that are not scheduled: their number by state, and the oldest publish times."""

    counts: Counter[str]
    oldest: tuple[Oldest, ...]


def unordered_backlog(
    ready: tuple[int, int, Oldest], claimed: tuple[int, Oldest], parked: tuple[int, Oldest]
) -> BacklogCounts:
    """Return the backlog of an unordered subscription; `ready` has the due ones, and those due later."""
    due, retrying, oldest_ready = ready
    counts = Counter(ready=due, retrying=retrying, in_flight=claimed[0], parked=parked[0])
    return BacklogCounts(counts, (oldest_ready, claimed[1], parked[1]))


def ordered_backlog(
    placed: tuple[int, Oldest], *, retrying: int, in_flight: int, parked: int, blocked: int
) -> BacklogCounts:
    """Return the backlog of an ordered subscription, with `placed` deliveries in its mailboxes.

    A mailbox whose head is retried counts as one delivery.
    """
    total, oldest = placed
    counts = Counter(retrying=retrying, in_flight=in_flight, parked=parked, blocked=blocked)
    counts["ready"] = total - counts.total()
    return BacklogCounts(counts, (oldest,))


def statistics_of(
    name: str,
    *,
    ordered: bool,
    paused: bool,
    events: Iterable[str],
    names: Collection[str],
    live: Collection[frozenset[str]],
    backlog: BacklogCounts,
    scheduled: tuple[int, int, Oldest],
    dead: int,
    blocked_keys: dict[str, str],
) -> SubscriptionStats:
    """Return the statistics of one subscription.

    Args:
        name: Its name.
        ordered: Whether it is ordered.
        paused: Whether it is paused.
        events: Its events.
        names: Its name and aliases.
        live: The subscriptions of each live worker.
        backlog: Its deliveries that are not scheduled.
        scheduled: The number of its scheduled deliveries that are due later and that are due, and the oldest of these.
        dead: The number of its dead letters.
        blocked_keys: Its blocked keys, with the error of each.
    """
    later, due, oldest_due = scheduled
    counts = backlog.counts
    return SubscriptionStats(
        name=name,
        events=frozenset(events),
        ordered=ordered,
        paused=paused,
        workers=sum(not it.isdisjoint(names) for it in live),
        ready=counts["ready"] + due,
        retrying=counts["retrying"],
        scheduled=later,
        in_flight=counts["in_flight"],
        parked=counts["parked"],
        blocked=counts["blocked"],
        dead=dead,
        oldest=min((it for it in (*backlog.oldest, oldest_due) if it is not None), default=None),
        blocked_keys=blocked_keys,
    )
