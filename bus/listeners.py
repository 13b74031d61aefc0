"""Listeners: registered handlers, with their events, kinds and signatures."""

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from bus.codec import FRAME_VERSION, frame_name
from bus.delivery import Delivery
from bus.errors import InvalidListener
from bus.events import EventType
from bus.handler_calls import function_name, is_async_function, layers_of
from bus.listener_options import AsyncOptions, BroadcastOptions, ListenerOptions, OrderedOptions

Handler = Callable[[Any], Awaitable[None] | None] | Callable[[Any, Delivery], Awaitable[None] | None]
"""A function of an event, or of an event and its delivery. The event's class is its first parameter's annotation."""

MAX_PARAMETERS = 2

EXPECTED = (
    "a handler takes one event, `(self, event: UserCreated)`, or an event and its delivery, "
    "`(self, event: UserCreated, delivery: Delivery)`, and returns None"
)


class ListenerKind(Enum):
    """When and where a listener's handler runs."""

    SYNC = "sync"
    ASYNC = "async"
    ORDERED = "ordered"
    BROADCAST = "broadcast"


OPTIONS: Final = {
    ListenerKind.SYNC: (),
    ListenerKind.ASYNC: tuple(typing.get_type_hints(AsyncOptions)),
    ListenerKind.ORDERED: tuple(typing.get_type_hints(OrderedOptions)),
    ListenerKind.BROADCAST: tuple(typing.get_type_hints(BroadcastOptions)),
}
"""The names of the options that listeners of each kind have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listener:
    """A registered handler."""

    name: str
    kind: ListenerKind
    handler: Callable[..., Awaitable[None] | None]
    event_types: tuple[EventType, ...]
    wants_delivery: bool
    is_async: bool
    options: ListenerOptions

    @property
    def own_options(self) -> dict[str, object]:
        """The options that listeners of this kind have, by name."""
        return {option: getattr(self.options, option) for option in OPTIONS[self.kind]}

    @property
    def names(self) -> tuple[str, ...]:
        """The listener's name and its aliases."""
        return (self.name, *self.options.aliases)

    @property
    def durable(self) -> bool:
        """Whether the queue stores a subscription for the listener."""
        return self.kind in {ListenerKind.ASYNC, ListenerKind.ORDERED}

    @property
    def events(self) -> frozenset[str]:
        """The wire names of the listener's events, aliases included."""
        return frozenset(name for each in self.event_types for name in (each.name, *each.aliases))

    @property
    def known(self) -> frozenset[str]:
        """What this code can decode, as `Consumer.unpark` takes it: event names, `name@version`, and frame versions."""
        versions = (
            f"{name}@{version}"
            for each in self.event_types
            for name in (each.name, *each.aliases)
            for version in range(1, each.version + 1)
        )
        return self.events | frozenset(versions) | {frame_name(each) for each in range(1, FRAME_VERSION + 1)}

    @property
    def unscoped(self) -> list[str]:
        """The events without an `ordering_scope`, if the listener is ordered and has several events."""
        if self.kind is not ListenerKind.ORDERED or len(self.event_types) == 1:
            return []
        return [each.name for each in self.event_types if each.ordering_scope is None]

    def call(self, event: object, delivery: Delivery | None) -> Awaitable[None] | None:
        """Call the handler with the event and, if its signature has one, the delivery."""
        return self.handler(event, delivery) if self.wants_delivery else self.handler(event)


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature of a handler: its event classes, and how it is called."""

    classes: tuple[type, ...]
    wants_delivery: bool
    is_async: bool


def default_name(handler: Handler) -> str:
    """Return a bound method's durable identity, `<service package>.<method>`.

    Raises:
        InvalidListener: the handler is a function, a lambda or a partial, which has no service to be named after.
    """
    owner = getattr(handler, "__self__", None)
    method = getattr(handler, "__name__", "")
    if owner is None or isinstance(owner, type) or not method.isidentifier():
        raise InvalidListener(
            f"{function_name(handler)} is not a method of a service: give the listener a durable identity, name='...'"
        )
    # services.user.service -> user; a class at the top of its package -> that package
    parts = type(owner).__module__.split(".")
    package = parts[-2] if len(parts) > 1 else parts[0]
    return f"{package}.{method}"


def inspect_handler(handler: Handler) -> Signature:
    """Return a handler's signature.

    Raises:
        InvalidListener: the signature is not that of a handler; the message names the handler and what is expected.
    """
    where = function_name(handler)
    try:
        parameters = list(inspect.signature(handler).parameters.values())
        hints = typing.get_type_hints(_annotated(handler))
    except (TypeError, ValueError, NameError) as error:
        raise InvalidListener(f"{where} has no readable signature ({error}); {EXPECTED}") from error
    if any(inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each) for each in layers_of(handler)):
        raise InvalidListener(f"{where} is a generator; {EXPECTED}")
    if not 1 <= len(parameters) <= MAX_PARAMETERS or any(p.kind not in _POSITIONAL for p in parameters):
        raise InvalidListener(f"{where} takes {_count(parameters)}; {EXPECTED}")
    if len(parameters) == MAX_PARAMETERS and hints.get(parameters[1].name) is not Delivery:
        raise InvalidListener(f"{where}: its second parameter must be annotated `Delivery`; {EXPECTED}")
    classes = _classes(hints.get(parameters[0].name), where)
    return Signature(classes, len(parameters) == MAX_PARAMETERS, is_async_function(handler))


def _annotated(handler: Handler) -> object:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _count(parameters: list[inspect.Parameter]) -> str:
    return "nothing" if not parameters else f"({', '.join(str(p) for p in parameters)})"


def _classes(hint: Any, where: str) -> tuple[type, ...]:  # noqa: ANN401 - an annotation can be anything
    if hint is None:
        raise InvalidListener(f"{where}: its first parameter has no event class as annotation; {EXPECTED}")
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) or _is_union(hint) else (hint,)
    if not members or not all(isinstance(each, type) for each in members):
        raise InvalidListener(
            f"{where} listens to {hint!r}, which is not an event class or a union of them; {EXPECTED}"
        )
    return tuple(members)


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Union
