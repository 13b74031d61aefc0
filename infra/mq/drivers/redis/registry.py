"""Which subscriptions are kept, and this process's copy of that."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import msgspec
import structlog

from infra.mq.drivers.redis.keys import GROUP, LINE, Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.retiring import RETIRING, finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.errors import SubscriptionConflict
from infra.mq.refusals import alias_conflict, no_event, no_subscription, order_conflict
from infra.mq.types import Registry, Subscription

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Kept(msgspec.Struct):
    """A subscription as it is kept. `sid` stays when the name changes, and is never used again."""

    sid: str
    name: str
    ordered: bool
    events: list[str]
    aliases: list[str] = []
    paused: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


class Content(msgspec.Struct):
    """Everything in the registry."""

    subscriptions: list[Kept] = []
    broadcast: list[str] = []
    retired: dict[str, str] = {}
    """Names of subscriptions that left dead letters behind, by sid."""

    retired_events: dict[str, list[str]] = {}
    """Events that were retired of subscriptions that stay, by sid: these are not declared again after a loss."""

    def copy(self) -> "Content":
        """Return one that can be changed."""
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=Content)


class Route(msgspec.Struct, frozen=True):
    """A subscription, and its keys."""

    kept: Kept
    keys: tuple[str, ...]

    @property
    def idle(self) -> str:
        """The key of those who wait until something comes."""
        return self.keys[GROUP.index("idle")]

    @property
    def box(self) -> str:
        """The key of the mailboxes."""
        return self.keys[GROUP.index("box")]

    @property
    def own(self) -> str:
        """The key of what is claimed, and by which worker."""
        return self.keys[GROUP.index("own")]


class Straight(msgspec.Struct, frozen=True):
    """How `send.lua` is told where an event goes, when that is to unordered subscriptions alone."""

    keys: tuple[str, ...]
    targets: tuple[str, ...]
    """For every subscription its sid, and whether it is paused ("1")."""


class Snapshot:
    """The registry at one version."""

    def __init__(self, version: str, content: Content, keys: Keys) -> None:
        self.version = version
        self.content = content
        self.all = [Route(it, keys.group(it.sid)) for it in content.subscriptions]
        self.by_name = {name: route for route in self.all for name in route.kept.names}
        self.routes: dict[str, tuple[Route, ...]] = {}
        for route in self.all:
            for event in route.kept.events:
                self.routes[event] = (*self.routes.get(event, ()), route)
        self._keys = keys
        self._straight: dict[str, Straight | None] = {}
        self.registry = Registry(routed=frozenset(self.routes), broadcast=frozenset(content.broadcast))

    def get(self, name: str, event: str | None = None) -> Route:
        """Return the subscription of that name or alias.

        Raises:
            SubscriptionNotFound: there is none, or it has no such event.
        """
        route = self.by_name.get(name)
        if route is None:
            raise no_subscription(name)
        if event is not None and event not in route.kept.events:
            raise no_event(name, event)
        return route

    def straight(self, event: str) -> Straight | None:
        """Return where all messages of an event go at once; None if that takes more than to put them in line."""
        if event not in self._straight:
            self._straight[event] = self._straight_to(self.routes.get(event, ()))
        return self._straight[event]

    def _straight_to(self, routes: Sequence[Route]) -> Straight | None:
        if any(it.kept.ordered for it in routes):
            return None
        keys = [self._keys.of(name) for name in ("meta", "accepted", "dedupe", "sleepers")]
        for route in routes:
            group = dict(zip(GROUP, route.keys, strict=True))
            keys += [group[name] for name in LINE]
        said = [it for route in routes for it in (route.kept.sid, "1" if route.kept.paused else "")]
        return Straight(tuple(keys), tuple(said))

    def formerly(self, route: Route) -> list[str]:
        """Return the sids under which subscriptions of the same name were kept and retired: their dead letters stay."""
        names = {*route.kept.names}
        return [sid for sid, name in self.content.retired.items() if name in names]

    def successor(self, sid: str) -> Route | None:
        """Return the subscription with this sid, or else the one that is kept now under its name."""
        kept = next((it for it in self.all if it.kept.sid == sid), None)
        return kept or self.by_name.get(self.content.retired.get(sid, ""))

    def name_of(self, sid: str) -> str:
        """Return the present, or the last, name of a subscription."""
        found = next((it.name for it in self.content.subscriptions if it.sid == sid), None)
        return found or self.content.retired.get(sid, sid)


class Catalog:
    """The registry as this process knows it. Scripts refuse to work with an outdated copy; then it is read anew."""

    def __init__(self, link: Callable[[], Link], keys: Keys, now: Callable[[], str]) -> None:
        self._link = link
        self._keys = keys
        self._now = now
        self._declared: dict[str, Subscription] = {}
        self._sids: dict[str, set[str]] = {}
        """Under which sids what this process declared was kept, by name."""

        self._broadcasts: set[str] = set()
        self._loading = asyncio.Lock()
        self.snapshot = Snapshot("", Content(), keys)
        self.changed_at = 0.0
        """When the registry was changed for the last time, by the broker's clock."""

    async def load(self, outdated: Snapshot | None = None) -> Snapshot:
        """Read the registry; with `outdated`, only if nobody else has done so since.

        After a flush, what this process had declared is declared anew.
        """
        async with self._loading:
            if outdated is not None and self.snapshot is not outdated:
                return self.snapshot
            if await self._read():
                await self._restore()
            return self.snapshot

    async def _restore(self) -> None:
        """Declare anew what this process had declared and the server has lost, as after a flush or with its last log.

        What was retired meanwhile is left alone: a retired sid is remembered, a lost one is not.
        """
        content = self.snapshot.content
        for name in [it for it, sids in self._sids.items() if sids & content.retired.keys()]:
            if name not in self.snapshot.by_name:
                self.forget([name])
        wanted = [self._without_retired(it) for it in self._declared.values()]
        missing = [it for it in wanted if not self._has(it)]
        if missing or not self._broadcasts <= set(content.broadcast):
            log.error("subscriptions vanished from the queue", restored=[it.name for it in missing])
            await self._change(lambda content: self._add_what_fits(content, wanted, self._broadcasts))
        self._note_sids()

    def _add_what_fits(self, content: Content, wanted: Sequence[Subscription], broadcasts: Collection[str]) -> None:
        """Add what contradicts nothing: what others declared meanwhile under the same names stays as it is."""
        for each in wanted:
            try:
                _add_one(content, each)
            except SubscriptionConflict as error:
                log.warning("subscription not restored", subscription=each.name, error=str(error))
        content.broadcast = sorted({*content.broadcast, *broadcasts})

    def _without_retired(self, wanted: Subscription) -> Subscription:
        route = self.snapshot.by_name.get(wanted.name)
        gone = self.snapshot.content.retired_events.get(route.kept.sid, ()) if route is not None else ()
        return replace(wanted, events=wanted.events - {*gone}) if gone else wanted

    def _has(self, wanted: Subscription) -> bool:
        route = self.snapshot.by_name.get(wanted.name)
        return route is not None and wanted.events <= {*route.kept.events}

    def _note_sids(self) -> None:
        for name in self._declared:
            if (route := self.snapshot.by_name.get(name)) is not None:
                self._sids.setdefault(name, set()).add(route.kept.sid)

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        """Add what is missing.

        Raises:
            SubscriptionConflict: something contradicts what is kept; nothing was added.
        """
        async with self._loading:
            if await self._read():
                await self._restore()
            await self._change(lambda content: self._add(content, subscriptions, broadcasts))
            self._declared |= {it.name: it for it in subscriptions}
            self._broadcasts |= set(broadcasts)
            self._note_sids()

    async def set_paused(self, name: str, *, paused: bool) -> None:
        """Pause or resume a subscription.

        Raises:
            SubscriptionNotFound: nothing is kept under that name.
        """

        def change(content: Content) -> None:
            route = Snapshot("", content, self._keys).get(name)
            route.kept.paused = paused

        async with self._loading:
            await self._read()
            await self._change(change)

    def forget(self, names: Collection[str]) -> None:
        """Do not declare these again after a flush."""
        for name in names:
            self._declared.pop(name, None)
            self._sids.pop(name, None)

    def forget_event(self, names: Collection[str], event: str) -> None:
        """Do not declare this event of a subscription again after a flush."""
        for name in names:
            if (declared := self._declared.get(name)) is not None:
                self._declared[name] = replace(declared, events=declared.events - {event})

    async def _read(self) -> bool:
        """Read the registry if it is not the one that is known here; return whether it is another one."""
        meta = self._keys.of("meta")
        [version] = await self._link().ask("HMGET", meta, "v")
        if (version.decode() if version else "") == self.snapshot.version:
            return False
        version, packed, changed_at = await self._link().ask("HMGET", meta, "v", "r", "t")
        content = msgspec.msgpack.decode(packed, type=Content) if packed else Content()
        self.snapshot = Snapshot(version.decode() if version else "", content, self._keys)
        self.changed_at = int(changed_at) / 1e6 if changed_at else 0.0
        return True

    async def _change(self, change: Callable[[Content], None]) -> None:
        """Apply `change`, again and again until nobody interferes."""
        while True:
            content = self.snapshot.content.copy()
            change(content)
            if content == self.snapshot.content:
                return
            version = secrets.token_hex(8)
            packed = msgspec.msgpack.encode(content)
            growing = _growing(self.snapshot.content, content)
            said = (self.snapshot.version, version, packed, self._now(), self._keys.changes)
            keys = [self._keys.of("meta"), self._keys.of("retiring")]
            answer = await self._link().safely(scripts().register, keys, *said, *growing)
            if answer == RETIRING:
                await finish_retiring(self._link(), self._keys, self._now)
            await self._read()
            if answer == 1:
                return

    @staticmethod
    def _add(content: Content, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        for wanted in subscriptions:
            _add_one(content, wanted)
        content.broadcast = sorted({*content.broadcast, *broadcasts})


def _growing(before: Content, after: Content) -> list[str]:
    """Return the sids of subscriptions that get more events."""
    events = {it.sid: {*it.events} for it in before.subscriptions}
    return [it.sid for it in after.subscriptions if it.sid in events and not events[it.sid].issuperset(it.events)]


def _add_one(content: Content, wanted: Subscription) -> None:
    names = (wanted.name, *wanted.aliases)
    by_name = {name: it for it in content.subscriptions for name in it.names}
    same = [*{by_name[name].sid: by_name[name] for name in names if name in by_name}.values()]
    if len(same) > 1:
        first, second = (next(name for name in names if name in it.names) for it in same[:2])
        raise alias_conflict(first, second)
    if not same:
        content.subscriptions.append(
            Kept(secrets.token_urlsafe(6), wanted.name, wanted.ordered, sorted(wanted.events), list(wanted.aliases))
        )
        return
    kept = same[0]
    if kept.ordered != wanted.ordered:
        raise order_conflict(wanted.name, ordered=kept.ordered)
    if wanted.name not in kept.names:
        # The dead letters of those that were retired under the old name go along.
        content.retired = {sid: wanted.name if name in kept.names else name for sid, name in content.retired.items()}
        kept.aliases.append(kept.name)
        kept.name = wanted.name
    kept.aliases = [*dict.fromkeys(it for it in (*kept.aliases, *wanted.aliases) if it != kept.name)]
    kept.events = sorted({*kept.events, *wanted.events})
    if gone := set(content.retired_events.pop(kept.sid, ())) - wanted.events:
        content.retired_events[kept.sid] = sorted(gone)
