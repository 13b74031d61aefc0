"""The options of a listener, and their validation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, cast

from bus.errors import InvalidListener
from bus.listeners import DEFAULT_RETRY, OnExhausted, OnGap
from bus.retry import Retry
from infra.mq.limits import MAX_DELAY, check_choice, check_count, check_name, check_names, check_number, shown

MAX_CONCURRENCY = 100_000
"""The most handlers of one listener that may run at once in one process."""

ON_EXHAUSTED: Final = ("skip", "block")


class Default:
    """Marks an argument that was not passed: the bus's option applies."""


DEFAULT: Final = Default()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """The options of one listener, as its `add_..._listener` call gave them."""

    name: str | None = None
    aliases: Iterable[str] = ()
    retry: Retry = DEFAULT_RETRY
    timeout: float | Default | None = DEFAULT
    concurrency: int | None = None
    once: bool = False
    on_exhausted: OnExhausted = "skip"
    on_gap: OnGap | None = None

    def checked(self, where: str) -> "ListenerOptions":
        """Return these options as plain values: names as str, `aliases` as a tuple, `timeout` as a float.

        Raises:
            InvalidListener: an option has the wrong type or is out of range; the message names the handler, `where`.
        """
        try:
            return self._checked()
        except ValueError as error:
            raise InvalidListener(f"{where}: {error}") from error

    def _checked(self) -> "ListenerOptions":
        name = None if self.name is None else check_name(self.name, "name")
        if not isinstance(self.retry, Retry):
            raise ValueError(f"retry must be a Retry, not {shown(self.retry)}")  # noqa: TRY004 - one type of error for all options
        concurrency = self.concurrency
        if concurrency is not None:
            concurrency = check_count(concurrency, "concurrency", least=1, most=MAX_CONCURRENCY)
        if not isinstance(self.once, bool):
            raise ValueError(f"once must be True or False, not {shown(self.once)}")  # noqa: TRY004 - as for `retry`
        on_exhausted = cast("OnExhausted", check_choice(self.on_exhausted, "on_exhausted", ON_EXHAUSTED))
        if self.on_gap is not None and not callable(self.on_gap):
            raise ValueError(f"on_gap must be a function or None, not {shown(self.on_gap)}")
        timeout = self.timeout
        if timeout is not None and not isinstance(timeout, Default):
            timeout = check_number(timeout, "timeout (in seconds, None for none)", least=0, most=MAX_DELAY, above=True)
        aliases = check_names(self.aliases, "aliases", "a former name")
        return replace(
            self, name=name, aliases=aliases, timeout=timeout, concurrency=concurrency, on_exhausted=on_exhausted
        )
