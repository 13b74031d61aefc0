"""The declared subscriptions and their names."""

from collections.abc import Collection, Hashable
from dataclasses import replace

from infra.mq.declaring import refuse_conflict
from infra.mq.drivers.memory.backlog import Backlog
from infra.mq.drivers.memory.ordered import OrderedBacklog
from infra.mq.drivers.memory.scheduled import Plan
from infra.mq.drivers.memory.store import Store
from infra.mq.drivers.memory.unordered import UnorderedBacklog
from infra.mq.drivers.memory.worker import MemoryWorker
from infra.mq.refusals import no_event, no_subscription
from infra.mq.types import Registry, Subscription, SubscriptionStats


class Subscriptions:
    """Every subscription's backlog, by name, by alias and by event."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._broadcast: set[str] = set()
        self.by_name: dict[str, Backlog] = {}
        self.routes: dict[str, list[Backlog]] = {}
        self.registry = Registry(routed=self.routes.keys(), broadcast=self._broadcast)
        """Views of the current state."""

    def get(self, name: str, event: str | None = None) -> Backlog:
        """Return the subscription with this name or alias.

        Raises:
            SubscriptionNotFound: there is none, or it has no such event.
        """
        backlog = self.by_name.get(name)
        if backlog is None:
            raise no_subscription(name)
        if event is not None and event not in backlog.events:
            raise no_event(name, event)
        return backlog

    def canonical(self, name: str) -> str:
        """Return the current name for a name or an alias; an unknown name is returned unchanged."""
        backlog = self.by_name.get(name)
        return name if backlog is None else backlog.name

    def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        """Add new subscriptions and events, all or none.

        Raises:
            SubscriptionConflict: a declared subscription contradicts an existing one.
        """
        self._refuse_conflicts(subscriptions)
        for subscription in subscriptions:
            self._add(subscription)
        self._broadcast.update(broadcasts)
        for event in self._store.agenda.listeners:
            event.set()

    def remove(self, backlog: Backlog, event: str | None) -> None:
        """Remove a subscription, or one event of it."""
        for removed in [event] if event is not None else list(backlog.events):
            backlog.events.discard(removed)
            self.routes[removed].remove(backlog)
            if not self.routes[removed]:
                del self.routes[removed]
        if event is None:
            for name in [name for name, it in self.by_name.items() if it is backlog]:
                del self.by_name[name]

    def workers_of(self, backlog: Backlog) -> list[MemoryWorker]:
        """Return the live workers that have this listener."""
        names = {name for name, it in self.by_name.items() if it is backlog}
        return [
            it for it in self._store.workers.values() if not it.closed and it.alive() and names & it.info.subscriptions
        ]

    def stats(self, plan: Plan) -> list[SubscriptionStats]:
        """Return the counts of every subscription, sorted by name."""
        backlogs = {it.name: it for it in self.by_name.values()}
        return [self._stats_of(backlogs[name], plan) for name in sorted(backlogs)]

    def _stats_of(self, backlog: Backlog, plan: Plan) -> SubscriptionStats:
        counts = backlog.counts()
        return SubscriptionStats(
            name=backlog.name,
            events=frozenset(backlog.events),
            ordered=backlog.ordered,
            paused=backlog.paused,
            workers=len(self.workers_of(backlog)),
            ready=counts.ready,
            retrying=counts.retrying,
            scheduled=len(plan.of(backlog)),
            in_flight=counts.in_flight,
            parked=counts.parked,
            blocked=counts.blocked,
            dead=sum(it.subscription == backlog.name for it in self._store.dead.values()),
            oldest=min((it.message.published_at for it in backlog.entries()), default=None),
            blocked_keys=backlog.blocked_keys(),
        )

    def _refuse_conflicts(self, subscriptions: Collection[Subscription]) -> None:
        kept: dict[str, tuple[Hashable, bool]] = {name: (it, it.ordered) for name, it in self.by_name.items()}
        for wanted in subscriptions:
            refuse_conflict(wanted, kept)
            names = (wanted.name, *wanted.aliases)
            existing = next((kept[name] for name in names if name in kept), (object(), wanted.ordered))
            kept.update(dict.fromkeys(names, existing))

    def _add(self, wanted: Subscription) -> None:
        names = (wanted.name, *wanted.aliases)
        backlog = next((self.by_name[name] for name in names if name in self.by_name), None)
        if backlog is None:
            kind = OrderedBacklog if wanted.ordered else UnorderedBacklog
            backlog = kind(wanted.name, self._store)
        elif wanted.name not in self.by_name:
            self._rename(backlog, wanted.name)
        for name in names:
            self.by_name[name] = backlog
        for event in sorted(wanted.events - backlog.events):
            backlog.events.add(event)
            self.routes.setdefault(event, []).append(backlog)

    def _rename(self, backlog: Backlog, name: str) -> None:
        for number, letter in self._store.dead.items():
            if letter.subscription == backlog.name:
                self._store.dead[number] = replace(letter, subscription=name)
        backlog.name = name
