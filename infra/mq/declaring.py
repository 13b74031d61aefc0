"""The parts of `MessageQueue.declare` that all drivers share: refusing conflicts, and waiting for publishers."""

from collections.abc import Callable, Hashable, Mapping

from infra.clock import Clock
from infra.mq.refusals import alias_conflict, order_conflict
from infra.mq.types import Subscription


def refuse_conflict(wanted: Subscription, existing: Mapping[str, tuple[Hashable, bool]]) -> None:
    """Check a declaration against the existing subscriptions.

    Args:
        wanted: The declared subscription.
        existing: By name and alias, the identity of each existing subscription, and whether it is ordered.

    Raises:
        SubscriptionConflict: the name and the aliases belong to two subscriptions, or to one that is ordered and is
            declared unordered, or the reverse.
    """
    found: dict[Hashable, tuple[str, bool]] = {}
    for name in (wanted.name, *wanted.aliases):
        if name in existing:
            identity, ordered = existing[name]
            found.setdefault(identity, (name, ordered))
    if len(found) > 1:
        (first, _), (second, _), *_ = found.values()
        raise alias_conflict(first, second)
    for _, ordered in found.values():
        if ordered != wanted.ordered:
            raise order_conflict(wanted.name, ordered=ordered)


class DeclareWait:
    """Waits until no publisher uses a subscription cache from before the last change of the registry.

    Args:
        clock: The clock that waits.
        time: The queue's time.
        registry_ttl: Seconds for which a publisher may use its subscription cache; 0 for no wait.
        longest_commit: Longest time, in seconds, from the time that a driver stores for a change until it is visible.
    """

    def __init__(
        self, clock: Clock, time: Callable[[], float], registry_ttl: float, *, longest_commit: float = 0.0
    ) -> None:
        self._clock = clock
        self._time = time
        self._registry_ttl = registry_ttl
        self._longest_commit = longest_commit
        self._known_since = 0.0
        """The time of the last change that all publishers are known to use."""

    async def after(self, changed_at: float) -> None:
        """Wait until all publishers know the change of the registry at `changed_at`, by the queue's clock."""
        if changed_at == self._known_since or self._registry_ttl <= 0:
            return
        # The change may be that of another process, made just before; this call must wait for publishers all the same.
        left = changed_at + self._longest_commit + self._registry_ttl - self._time()
        if left > 0:
            await self._clock.sleep(min(left, self._registry_ttl))
        self._known_since = changed_at
