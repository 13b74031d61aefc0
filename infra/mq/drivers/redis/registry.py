"""The registry: its stored form, this process's copy of it, and changes to it."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import msgspec
import structlog

from infra.mq.declaring import refuse_conflict
from infra.mq.drivers.redis.keys import GROUP, LINE, WAITING, Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.retiring import RETIRING, finish_retiring
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.errors import SubscriptionConflict
from infra.mq.refusals import no_event, no_subscription
from infra.mq.types import Registry, Subscription

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RegisteredSubscription(msgspec.Struct):
    """A subscription as the registry stores it. `sid` stays when the name changes, and is never reused."""

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


class RegistryContent(msgspec.Struct):
    """The registry as it is stored: one value, replaced as a whole."""

    subscriptions: list[RegisteredSubscription] = []
    broadcast: list[str] = []
    retired: dict[str, str] = {}
    """Names of retired subscriptions, by sid: their dead letters stay."""

    retired_events: dict[str, list[str]] = {}
    """Events retired from existing subscriptions, by sid: they are not declared again after a loss."""

    def copy(self) -> "RegistryContent":
        """Return a deep copy."""
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=RegistryContent)


class Route(msgspec.Struct, frozen=True):
    """A subscription with its keys."""

    subscription: RegisteredSubscription
    keys: tuple[str, ...]

    @property
    def idle(self) -> str:
        """The key of the set of waiting consumers."""
        return self.keys[GROUP.index("idle")]

    @property
    def box(self) -> str:
        """The key of the mailboxes."""
        return self.keys[GROUP.index("box")]

    @property
    def own(self) -> str:
        """The key of the claims, each with its worker."""
        return self.keys[GROUP.index("own")]


class SendTargets(msgspec.Struct, frozen=True):
    """The keys and arguments of `send.lua` for an event that only unordered subscriptions receive."""

    keys: tuple[str, ...]
    targets: tuple[str, ...]
    """For each subscription its sid, and "1" if it is paused, else an empty text."""


class RegistrySnapshot:
    """The registry at one version."""

    def __init__(self, version: str, content: RegistryContent, keys: Keys) -> None:
        self.version = version
        self.content = content
        self.all = [Route(it, keys.group(it.sid)) for it in content.subscriptions]
        self.by_name = {name: route for route in self.all for name in route.subscription.names}
        self.routes: dict[str, tuple[Route, ...]] = {}
        for route in self.all:
            for event in route.subscription.events:
                self.routes[event] = (*self.routes.get(event, ()), route)
        self._keys = keys
        self._send_targets: dict[str, SendTargets | None] = {}
        self.registry = Registry(routed=frozenset(self.routes), broadcast=frozenset(content.broadcast))

    def get(self, name: str, event: str | None = None) -> Route:
        """Return the subscription with this name or alias.

        Raises:
            SubscriptionNotFound: there is none, or it has no such event.
        """
        route = self.by_name.get(name)
        if route is None:
            raise no_subscription(name)
        if event is not None and event not in route.subscription.events:
            raise no_event(name, event)
        return route

    def send_targets(self, event: str) -> SendTargets | None:
        """Return the targets for `send.lua` of an event; None if an ordered subscription receives it."""
        if event not in self._send_targets:
            self._send_targets[event] = self._find_send_targets(self.routes.get(event, ()))
        return self._send_targets[event]

    def _find_send_targets(self, routes: Sequence[Route]) -> SendTargets | None:
        if any(it.subscription.ordered for it in routes):
            return None
        keys = [self._keys.of(name) for name in ("meta", "accepted", "dedupe", WAITING)]
        for route in routes:
            group = dict(zip(GROUP, route.keys, strict=True))
            keys += [group[name] for name in LINE]
        arguments = [
            it for route in routes for it in (route.subscription.sid, "1" if route.subscription.paused else "")
        ]
        return SendTargets(tuple(keys), tuple(arguments))

    def formerly(self, route: Route) -> list[str]:
        """Return the sids of retired subscriptions with a name of `route`: their dead letters belong to it now."""
        names = {*route.subscription.names}
        return [sid for sid, name in self.content.retired.items() if name in names]

    def successor(self, sid: str) -> Route | None:
        """Return the subscription with this sid or, if that was retired, the one that now has its name."""
        stored = next((it for it in self.all if it.subscription.sid == sid), None)
        return stored or self.by_name.get(self.content.retired.get(sid, ""))

    def name_of(self, sid: str) -> str:
        """Return the current name of a subscription or, if it was retired, its last name."""
        found = next((it.name for it in self.content.subscriptions if it.sid == sid), None)
        return found or self.content.retired.get(sid, sid)


class RegistryClient:
    """Reads and changes the stored registry, and keeps a copy of it, `snapshot`.

    A script that gets an outdated version answers `OUTDATED`, and its caller loads the registry again.
    """

    def __init__(self, link: Callable[[], Link], keys: Keys, now: Callable[[], str]) -> None:
        self._link = link
        self._keys = keys
        self._now = now
        self._declared: dict[str, Subscription] = {}
        self._sids: dict[str, set[str]] = {}
        """The sids that the subscriptions declared by this process have had, by name."""

        self._broadcasts: set[str] = set()
        self._loading = asyncio.Lock()
        self.snapshot = RegistrySnapshot("", RegistryContent(), keys)
        self.changed_at = 0.0
        """Time of the last change, in seconds since the epoch by the server's clock."""

    async def load(self, outdated: RegistrySnapshot | None = None) -> RegistrySnapshot:
        """Read the registry; with `outdated`, only if that is still the current copy.

        After a flush of the server, this process declares its subscriptions again.
        """
        async with self._loading:
            if outdated is not None and self.snapshot is not outdated:
                return self.snapshot
            if await self._read():
                await self._restore()
            return self.snapshot

    async def _restore(self) -> None:
        """Declare again what this process had declared and the server has lost, as after a flush.

        Retired subscriptions are not declared again: the registry knows retired sids, but not lost ones.
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

    def _add_what_fits(
        self, content: RegistryContent, wanted: Sequence[Subscription], broadcasts: Collection[str]
    ) -> None:
        """Add what contradicts nothing: subscriptions that other processes declared with these names stay unchanged."""
        for each in wanted:
            try:
                _add_one(content, each)
            except SubscriptionConflict as error:
                log.warning("subscription not restored", subscription=each.name, error=str(error))
        content.broadcast = sorted({*content.broadcast, *broadcasts})

    def _without_retired(self, wanted: Subscription) -> Subscription:
        route = self.snapshot.by_name.get(wanted.name)
        retired = self.snapshot.content.retired_events.get(route.subscription.sid, ()) if route is not None else ()
        return replace(wanted, events=wanted.events - {*retired}) if retired else wanted

    def _has(self, wanted: Subscription) -> bool:
        route = self.snapshot.by_name.get(wanted.name)
        return route is not None and wanted.events <= {*route.subscription.events}

    def _note_sids(self) -> None:
        for name in self._declared:
            if (route := self.snapshot.by_name.get(name)) is not None:
                self._sids.setdefault(name, set()).add(route.subscription.sid)

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        """Add missing subscriptions, events and broadcast events.

        Raises:
            SubscriptionConflict: a declared subscription contradicts an existing one; nothing was added.
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
            SubscriptionNotFound: no subscription has that name.
        """

        def change(content: RegistryContent) -> None:
            route = RegistrySnapshot("", content, self._keys).get(name)
            route.subscription.paused = paused

        async with self._loading:
            await self._read()
            await self._change(change)

    def forget(self, names: Collection[str]) -> None:
        """Do not declare these subscriptions again after a flush."""
        for name in names:
            self._declared.pop(name, None)
            self._sids.pop(name, None)

    def forget_event(self, names: Collection[str], event: str) -> None:
        """Do not declare this event of a subscription again after a flush."""
        for name in names:
            if (declared := self._declared.get(name)) is not None:
                self._declared[name] = replace(declared, events=declared.events - {event})

    async def _read(self) -> bool:
        """Read the registry if its version has changed; return whether it has."""
        meta = self._keys.of("meta")
        [version] = await self._link().query("HMGET", meta, "v")
        if (version.decode() if version else "") == self.snapshot.version:
            return False
        version, packed, changed_at = await self._link().query("HMGET", meta, "v", "r", "t")
        content = msgspec.msgpack.decode(packed, type=RegistryContent) if packed else RegistryContent()
        self.snapshot = RegistrySnapshot(version.decode() if version else "", content, self._keys)
        self.changed_at = int(changed_at) / 1e6 if changed_at else 0.0
        return True

    async def _change(self, change: Callable[[RegistryContent], None]) -> None:
        """Apply `change` to a copy and store it; repeat that while other processes change the registry meanwhile."""
        while True:
            content = self.snapshot.content.copy()
            change(content)
            if content == self.snapshot.content:
                return
            version = secrets.token_hex(8)
            packed = msgspec.msgpack.encode(content)
            growing = _growing(self.snapshot.content, content)
            arguments = (self.snapshot.version, version, packed, self._now(), self._keys.changes)
            keys = [self._keys.of("meta"), self._keys.of("retiring")]
            answer = await self._link().run_repeatable(scripts().register, keys, *arguments, *growing)
            if answer == RETIRING:
                await finish_retiring(self._link(), self._keys, self._now)
            await self._read()
            if answer == 1:
                return

    @staticmethod
    def _add(content: RegistryContent, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        for wanted in subscriptions:
            _add_one(content, wanted)
        content.broadcast = sorted({*content.broadcast, *broadcasts})


def _growing(before: RegistryContent, after: RegistryContent) -> list[str]:
    """Return the sids of existing subscriptions that get further events."""
    events = {it.sid: {*it.events} for it in before.subscriptions}
    return [it.sid for it in after.subscriptions if it.sid in events and not events[it.sid].issuperset(it.events)]


def _add_one(content: RegistryContent, wanted: Subscription) -> None:
    by_name = {name: it for it in content.subscriptions for name in it.names}
    refuse_conflict(wanted, {name: (it.sid, it.ordered) for name, it in by_name.items()})
    stored = next((by_name[name] for name in (wanted.name, *wanted.aliases) if name in by_name), None)
    if stored is None:
        content.subscriptions.append(
            RegisteredSubscription(
                secrets.token_urlsafe(6), wanted.name, wanted.ordered, sorted(wanted.events), list(wanted.aliases)
            )
        )
        return
    if wanted.name not in stored.names:
        # Dead letters of subscriptions retired with the old name belong to the new name, too.
        content.retired = {sid: wanted.name if name in stored.names else name for sid, name in content.retired.items()}
        stored.aliases.append(stored.name)
        stored.name = wanted.name
    stored.aliases = [*dict.fromkeys(it for it in (*stored.aliases, *wanted.aliases) if it != stored.name)]
    stored.events = sorted({*stored.events, *wanted.events})
    if retired := set(content.retired_events.pop(stored.sid, ())) - wanted.events:
        content.retired_events[stored.sid] = sorted(retired)
