"""Publish hooks and propagated headers: what every publish adds to its headers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from bus.delivery import NO_HEADERS, Cause, Delivery, causes
from bus.errors import InvalidListener
from bus.handler_calls import check_function
from bus.outgoing import Outgoing, valid_headers

EXPECTED = "a publish hook is `def f(publishing: Publishing) -> None`, which `publish` does not await"


@dataclass(frozen=True, slots=True)
class Publishing:
    """A publish, as hooks see it before the event is encoded."""

    event: object
    name: str
    """The event's wire name."""

    id: str
    """The message's id, as `Delivery.id` has it."""

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
        try:
            check_function(hook, 1, is_async=False, expected=EXPECTED)
        except ValueError as error:
            raise InvalidListener(str(error)) from error
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
            publishing = Publishing(outgoing.event, outgoing.name, outgoing.id, headers)
            for hook in self._hooks:
                hook(publishing)
            outgoing.headers = valid_headers(publishing.headers)
        elif headers:
            outgoing.headers = headers

    def _propagated(self, cause: Cause | None) -> Mapping[str, str]:
        """Return the headers that pass from the nearest delivery or publish that caused this one."""
        for each in causes(cause) if self._propagate else ():
            if isinstance(each, Delivery | Outgoing):
                return {name: value for name, value in each.headers.items() if name in self._propagate}
        return NO_HEADERS
