"""The table of a process's listeners: filled while services are constructed, frozen by `Bus.start()`."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bus.errors import BusFrozen, InvalidEvent, InvalidListener
from bus.events import EventType
from bus.handler_calls import function_name
from bus.listeners import Listener, ListenerKind


@dataclass(frozen=True, slots=True)
class LocalListeners:
    """An event class, and its listeners that run in the process that publishes it."""

    event_type: EventType
    sync: list[Listener] = field(default_factory=list)
    broadcast: list[Listener] = field(default_factory=list)


class ListenerTable:
    """The listeners of this process, and the event classes that were listened to or published."""

    def __init__(self) -> None:
        self.frozen = False
        self._listeners: list[Listener] = []
        self._names: dict[str, Listener] = {}
        self._local: dict[type, LocalListeners] = {}
        self._events: dict[str, EventType] = {}

    def require_open(self, what: str, advice: str = "construct every service before bus.start()") -> None:
        """Refuse an addition to a started bus.

        Raises:
            BusFrozen: the bus has started.
        """
        if self.frozen:
            raise BusFrozen(f"{what} was added after bus.start(): {advice}")

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All listeners, in order of registration."""
        return tuple(self._listeners)

    @property
    def events(self) -> dict[str, EventType]:
        """The event types by wire name, aliases included."""
        return self._events

    def durable(self) -> dict[str, Listener]:
        """Return the durable listeners, which the worker runs, by name."""
        return {each.name: each for each in self._listeners if each.durable}

    def local(self, cls: type) -> LocalListeners:
        """Return the local listeners of an event class; its first use inspects the class.

        Raises:
            InvalidEvent: `cls` is not an event class, or another class has its wire name.
        """
        known = self._local.get(cls)
        if known is not None:
            return known
        event_type = EventType(cls)
        for name in (event_type.name, *event_type.aliases):
            other = self._events.get(name)
            if other is not None:
                raise InvalidEvent(
                    f"two classes have the wire name {name!r}: {_where(other.cls)} and {_where(cls)}; "
                    "give one of them another `event_name`"
                )
        for name in (event_type.name, *event_type.aliases):
            self._events[name] = event_type
        self._local[cls] = local = LocalListeners(event_type)
        return local

    def event_types(self, classes: Iterable[type]) -> tuple[EventType, ...]:
        """Return the event types of event classes.

        Raises:
            InvalidEvent: one is not an event class, or another class has its wire name.
        """
        return tuple(self.local(cls).event_type for cls in classes)

    def add(self, listener: Listener) -> None:
        """Register a listener.

        Raises:
            BusFrozen: the bus has started.
            InvalidListener: its name is taken, its handler is registered already, or it is ordered and an event has no
                ordering key, or two have different ordering scopes.
        """
        where = function_name(listener.handler)
        self.require_open(where)
        self._refuse_duplicate(listener, where)
        if listener.kind is ListenerKind.ORDERED:
            _require_ordered(listener, where)
        self._listeners.append(listener)
        if listener.durable:
            for name in listener.names:
                self._names[name] = listener
        for each in listener.event_types:
            local = self._local[each.cls]
            if listener.kind is ListenerKind.SYNC:
                local.sync.append(listener)
            elif listener.kind is ListenerKind.BROADCAST:
                local.broadcast.append(listener)

    def _refuse_duplicate(self, listener: Listener, where: str) -> None:
        for other in self._listeners:
            if other.kind is listener.kind and other.handler == listener.handler:
                raise InvalidListener(f"{where} is registered twice as {listener.kind.value} listener")
        if not listener.durable:
            return
        for name in listener.names:
            if existing := self._names.get(name):
                raise InvalidListener(
                    f"two listeners are called {name!r}: {function_name(existing.handler)} and {where}; "
                    "give one of them another name='...'"
                )


def _require_ordered(listener: Listener, where: str) -> None:
    for each in listener.event_types:
        if not each.ordered:
            raise InvalidListener(
                f"{where} is an ordered listener, but {each.name} has no `def ordering_key(self) -> str`"
            )
    scoped = [each for each in listener.event_types if each.ordering_scope is not None]
    for each in scoped:
        if each.ordering_scope != scoped[0].ordering_scope:
            raise InvalidListener(
                f"{where} is one ordered listener of events whose ordering keys identify different things: "
                f"{scoped[0].name} has the ordering_scope {scoped[0].ordering_scope!r} and {each.name} "
                f"{each.ordering_scope!r}; add one listener for each scope"
            )


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
