"""Adding a listener: its handler is inspected, its options are checked, and its events are looked up."""

from bus.errors import BusFrozen, InvalidEvent, InvalidListener
from bus.listener_options import Default, ListenerOptions
from bus.listener_table import ListenerTable
from bus.listeners import Handler, Listener, ListenerKind, default_name, handler_name, inspect_handler
from bus.options import BusOptions
from infra.mq.limits import check_name


class Registration:
    """Adds listeners to the listener table of one bus."""

    def __init__(self, listeners: ListenerTable, options: BusOptions, *, has_db: bool) -> None:
        self._listeners = listeners
        self._options = options
        self._has_db = has_db

    def add(self, kind: ListenerKind, handler: Handler, asked: ListenerOptions) -> None:
        """Register a handler.

        Raises:
            InvalidListener, InvalidEvent: the message names the handler and what is expected.
            BusFrozen: the bus has started.
        """
        where = handler_name(handler)
        if self._listeners.frozen:
            raise BusFrozen(f"{where} comes too late: the bus has started; construct every service before bus.start()")
        signature = inspect_handler(handler)
        options = asked.checked(where)
        self._refuse_unfit(where, options, is_async=signature.is_async)
        timeout = options.timeout
        if isinstance(timeout, Default):
            stoppable = signature.is_async or kind is ListenerKind.BROADCAST  # which runs in the loop
            timeout = self._options.timeout if stoppable else None
        durable = kind in {ListenerKind.ASYNC, ListenerKind.ORDERED}
        name = options.name or (_default_name(handler, where) if durable else where)
        aliases = tuple(options.aliases)
        if name in aliases:
            raise InvalidListener(
                f"{where}: aliases holds the listener's present name {name!r}; give former names alone"
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
                aliases=aliases,
                retry=options.retry,
                timeout=timeout,
                concurrency=options.concurrency or self._options.concurrency,
                once=options.once,
                on_exhausted=options.on_exhausted,
                on_gap=options.on_gap,
            )
        )

    def _refuse_unfit(self, where: str, options: ListenerOptions, *, is_async: bool) -> None:
        if not is_async and options.once:
            raise InvalidListener(f"{where} runs in a thread, where once=True cannot hold: make it `async def`")
        if not is_async and not isinstance(options.timeout, Default) and options.timeout is not None:
            raise InvalidListener(f"{where} runs in a thread, which no timeout can stop: make it `async def`")
        if options.once and not self._has_db:
            raise InvalidListener(f"{where} wants once=True, which needs a database: Bus(mq, db)")


def _default_name(handler: Handler, where: str) -> str:
    try:
        return check_name(default_name(handler), "the listener's name, by default that of its package and method,")
    except ValueError as error:
        raise InvalidListener(f"{where}: {error}; give it another name='...'") from error
