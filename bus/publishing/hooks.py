"""Publish hooks and propagated headers: what every publish adds to its headers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from bus.delivery import NO_HEADERS, Cause
from bus.errors import InvalidListener
from bus.handler_calls import function_name, is_async_function
from bus.outgoing import Outgoing, valid_headers
from infra.mq.limits import shown

MAX_CAUSES = 1000
"""The largest number of nested `correlation` blocks that are searched for headers."""

EXPECTED = "a publish hook is `def f(publishing: Publishing) -> None`"


@dataclass(frozen=True, slots=True)
class Publishing:
    """A publish, as hooks see it before the event is encoded."""

    event: object
    name: str
    """The event's wire name."""

    headers: dict[str, str] = field(default_factory=dict)
    """The message's headers, which a hook may change; names that begin with "beneath-" belong to the bus."""


PublishHook = Callable[[Publishing], None]


class Stamper:
    """Completes the headers of each publish: those that pass from its cause, then those that hooks set."""

    def __init__(self, propagate: frozenset[str]) -> None:
        self._propagate = propagate
        self._hooks: list[PublishHook] = []
        self.idle = not propagate
        """Whether it changes nothing: no header is propagated, and there is no hook."""

    def add(self, hook: object) -> None:
        """Add a hook.

        Raises:
            InvalidListener: it is not a plain function of one argument.
        """
        if not callable(hook) or isinstance(hook, type):
            raise InvalidListener(f"{shown(hook)} is not a function; {EXPECTED}")
        try:
            inspect.signature(hook).bind(None)
        except (TypeError, ValueError) as error:
            raise InvalidListener(f"{function_name(hook)} cannot be called ({error}); {EXPECTED}") from error
        if is_async_function(hook):
            raise InvalidListener(f"{function_name(hook)} is `async def`, but publish does not await hooks; {EXPECTED}")
        self._hooks.append(cast("PublishHook", hook))
        self.idle = False

    def stamp(self, outgoing: Outgoing) -> None:
        """Set the headers of a publish.

        Raises:
            InvalidEvent: a hook set an invalid header.
            Exception: the error of a hook.
        """
        headers = {**self._propagated(outgoing.cause), **outgoing.headers}
        if self._hooks:
            publishing = Publishing(outgoing.event, outgoing.name, headers)
            for hook in self._hooks:
                hook(publishing)
            outgoing.headers = valid_headers(publishing.headers)
        elif headers:
            outgoing.headers = headers

    def _propagated(self, cause: Cause | None) -> Mapping[str, str]:
        """Return the headers that pass from the nearest delivery or publish that caused this one."""
        if not self._propagate:
            return NO_HEADERS
        found: object = cause
        for _ in range(MAX_CAUSES):
            headers = getattr(found, "headers", None)
            if isinstance(headers, Mapping):
                return {name: value for name, value in headers.items() if name in self._propagate}
            found = getattr(found, "cause", None)
            if found is None:
                break
        return NO_HEADERS
