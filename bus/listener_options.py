"""The options of listeners: their meaning, types, defaults and validation.

A new option is an entry of the TypedDict of its kind, which the editor shows where a listener is added, and a field of
`ListenerOptions`, which has its default and its check.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from bus.middleware import Middleware, check_all_middleware
from bus.retry import DEFAULT_RETRY, Retry
from infra.mq.limits import MAX_DELAY, check_choice, check_count, check_name, check_names, check_number, shown

OnGap = Callable[[], Awaitable[None] | None]
OnExhausted = Literal["skip", "block"]

MAX_CONCURRENCY = 100_000
"""The most handlers of one listener that may run at once in one process."""

ON_EXHAUSTED: Final = ("skip", "block")


class AsyncOptions(TypedDict, total=False):
    """The options of `add_async_listener`."""

    name: str | None
    """The listener's durable identity; None, the default, for `<service package>.<method>`."""

    aliases: Iterable[str]
    """Former names of the listener, whose backlog it takes over; none by default."""

    retry: Retry
    """The number of attempts and the delays between them; by default `Retry()`."""

    timeout: float | None
    """How long an attempt may take, in seconds, None for no limit; by default that of the bus.

    A plain `def` handler runs in a thread, which cannot be cancelled, so it cannot have a timeout.
    """

    concurrency: int | None
    """How many handlers of the listener run at once in a process; None, the default, for the bus's number.

    Of an ordered listener: how many ordering keys are handled at once.
    """

    once: bool
    """Whether the handler runs in a transaction, so that its database effects and publishes happen once per event.

    False by default. It needs a database and an `async def` handler.
    """

    middleware: Iterable[Middleware]
    """Functions that run around each attempt, inside those of `Bus.add_middleware`; the first one is the outermost."""


class OrderedOptions(AsyncOptions, total=False):
    """The options of `add_async_ordered_listener`."""

    on_exhausted: OnExhausted
    """What happens after the last attempt: the event becomes a dead letter and its key continues ("skip", the default),
    or the key stays blocked until `beneath bus unblock` ("block").
    """


class BroadcastOptions(TypedDict, total=False):
    """The options of `add_broadcast_listener`."""

    on_gap: OnGap | None
    """A function to call after any time in which broadcasts may have been missed; None, the default, for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """The options of one listener, validated, as plain values: text as str, `aliases` as a tuple, times as floats.

    An option that the listener's kind does not have keeps its default. The bus supplies `timeout` and `concurrency`
    where the caller does not.

    Raises:
        ValueError: an option has the wrong type or is out of range.
    """

    name: str | None = None
    aliases: tuple[str, ...] = ()
    retry: Retry = DEFAULT_RETRY
    timeout: float | None
    concurrency: int
    once: bool = False
    middleware: tuple[Middleware, ...] = ()
    on_exhausted: OnExhausted = "skip"
    on_gap: OnGap | None = None

    def __post_init__(self) -> None:
        """Check every option, and store it as a plain value."""
        if self.name is not None:
            self._store("name", check_name(self.name, "name"))
        if not isinstance(self.retry, Retry):
            raise ValueError(f"retry must be a Retry, not {shown(self.retry)}")  # noqa: TRY004 - one type of error for all options
        self._store("concurrency", check_count(self.concurrency, "concurrency", least=1, most=MAX_CONCURRENCY))
        if not isinstance(self.once, bool):
            raise ValueError(f"once must be True or False, not {shown(self.once)}")  # noqa: TRY004 - as for `retry`
        self._store("on_exhausted", check_choice(self.on_exhausted, "on_exhausted", ON_EXHAUSTED))
        if self.on_gap is not None and not callable(self.on_gap):
            raise ValueError(f"on_gap must be a function or None, not {shown(self.on_gap)}")
        if self.timeout is not None:
            what = "timeout (in seconds, None for none)"
            self._store("timeout", check_number(self.timeout, what, least=0, most=MAX_DELAY, above=True))
        self._store("middleware", check_all_middleware(self.middleware))
        self._store("aliases", check_names(self.aliases, "aliases", "a former name"))

    def _store(self, option: str, value: object) -> None:
        object.__setattr__(self, option, value)
