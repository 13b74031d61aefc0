"""The registration of listeners: inspects handlers, checks options, and resolves event classes."""

from collections.abc import Mapping
from typing import Any

from bus.errors import InvalidEvent, InvalidListener
from bus.handler_calls import function_name
from bus.listener_options import ListenerOptions
from bus.listener_table import ListenerTable
from bus.listeners import OPTIONS, Handler, Listener, ListenerKind, default_name, inspect_handler
from bus.options import BusOptions
from infra.mq.limits import check_name


class Registration:
    """Adds listeners to the listener table of one bus; `Bus.add_..._listener` uses it."""

    def __init__(self, listeners: ListenerTable, options: BusOptions, *, has_db: bool) -> None:
        self._listeners = listeners
        self._options = options
        self._has_db = has_db

    def add(self, kind: ListenerKind, handler: Handler, given: Mapping[str, Any]) -> None:
        """Add a listener with the options that its caller has given.

        Raises:
            InvalidListener, InvalidEvent: the handler, an option or an event class is invalid; the message says why.
            BusFrozen: the bus has started.
            TypeError: a listener of this kind has no option with this name.
        """
        where = function_name(handler)
        for option in given:
            if option not in OPTIONS[kind]:
                raise TypeError(
                    f"{where}: {option!r} is not an option of {kind.value} listeners: {', '.join(OPTIONS[kind])}"
                )
        self._listeners.require_open(where)
        signature = inspect_handler(handler)
        # A broadcast listener runs in the event loop, even if it is a plain `def`.
        cancellable = signature.is_async or kind is ListenerKind.BROADCAST
        try:
            options = self._complete(given, cancellable=cancellable)
        except ValueError as error:
            raise InvalidListener(f"{where}: {error}") from error
        self._refuse_unsupported(where, options, cancellable=cancellable)
        durable = kind in {ListenerKind.ASYNC, ListenerKind.ORDERED}
        name = options.name or (_default_name(handler, where) if durable else where)
        if name in options.aliases:
            raise InvalidListener(
                f"{where}: aliases contains the listener's present name {name!r}; list only its former names"
            )
        try:
            event_types = self._listeners.event_types(signature.classes)
        except InvalidEvent as error:
            raise InvalidEvent(f"{where}: {error}") from error
        self._listeners.add(
            Listener(
                name=name,
                kind=kind,
                handler=handler,
                event_types=event_types,
                wants_delivery=signature.wants_delivery,
                is_async=signature.is_async,
                options=options,
            )
        )

    def _complete(self, given: Mapping[str, Any], *, cancellable: bool) -> ListenerOptions:
        """Return all options of a listener: the given ones, the bus's, and the defaults."""
        options = {"timeout": self._options.timeout if cancellable else None, **given}
        if options.get("concurrency") is None:
            options["concurrency"] = self._options.concurrency
        return ListenerOptions(**options)

    def _refuse_unsupported(self, where: str, options: ListenerOptions, *, cancellable: bool) -> None:
        if options.once and not cancellable:
            raise InvalidListener(
                f"{where}: once=True needs an `async def` handler; a plain `def` handler runs in a thread"
            )
        if options.timeout is not None and not cancellable:
            raise InvalidListener(f"{where}: timeout needs an `async def` handler; a thread cannot be cancelled")
        if options.once and not self._has_db:
            raise InvalidListener(f"{where}: once=True needs a database: construct the bus by Bus(mq, db)")


def _default_name(handler: Handler, where: str) -> str:
    try:
        return check_name(default_name(handler), "the listener's default name, <service package>.<method>,")
    except ValueError as error:
        raise InvalidListener(f"{where}: {error}; give it another name='...'") from error
