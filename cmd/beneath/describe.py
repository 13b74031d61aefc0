"""Descriptions of events and listeners, for `beneath bus listeners`, `explain` and `publish`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from beneath.errors import UsageError
from bus import Bus, EventType, Listener, ListenerKind, ListenerOptions, Middleware, Retry, function_name
from dependencies.sources import nearest

PLACES = {
    ListenerKind.SYNC: "in the publisher's process and transaction",
    ListenerKind.ASYNC: "in a worker",
    ListenerKind.ORDERED: "in a worker, one at a time per ordering key",
    ListenerKind.BROADCAST: "in every running process, at most once",
}

SHOWN_OPTIONS = [
    each.name
    for each in dataclasses.fields(ListenerOptions)
    if each.name not in {"name", "retry", "on_gap", "middleware"}
]
"""The listener options that a listener's row shows under their own names.

`name` is shown as "listener", `retry` as "attempts", "delays" and "cases", and the functions of `middleware` by their
names; `on_gap`, a function, is not shown.
"""

SHOWN_DELAYS = 20
"""The number of delays between attempts that are shown at most."""

WORDED_OPTIONS = {"timeout", "concurrency", "once", "on_exhausted"}
"""The listener options that `explanation` describes in a sentence, and not as `option: value`."""


def find_event(bus: Bus, name: str) -> EventType:
    """Return the event type with this name.

    Raises:
        UsageError: no listener in this code has the event. The text suggests the nearest name.
    """
    found = bus.event_types.get(name)
    if found is None:
        known = sorted(bus.event_types)
        raise UsageError(f"no listener has an event {name!r}{nearest(name, known)} (there are: {', '.join(known)})")
    return found


def read_event(event_type: EventType, text: str) -> object:
    """Decode an event from the JSON object of its fields.

    Raises:
        UsageError: `text` is not a JSON object, or a field is unknown, missing or invalid.
    """
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"the fields of {event_type.name} are not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"the fields of {event_type.name} must be a JSON object, like {_example(event_type)}")
    known = field_names(event_type)
    for name in given:
        if name not in known:
            raise UsageError(
                f"{event_type.name} has no field {name!r}{nearest(name, known)} (there are: {', '.join(known)})"
            )
    try:
        return msgspec.json.decode(text, type=event_type.cls)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{event_type.name}: {error}") from None


def field_names(event_type: EventType) -> list[str]:
    """Return the names of the event's fields as they are encoded in a message."""
    if issubclass(event_type.cls, msgspec.Struct):
        return list(event_type.cls.__struct_encode_fields__)
    return [each.name for each in dataclasses.fields(event_type.cls)]  # type: ignore[arg-type]  # it is a dataclass


def listener_row(each: Listener, middleware: Sequence[Middleware] = ()) -> dict[str, object]:
    """Return a listener as plain data; options that do not apply to its kind are None.

    `middleware` is that of the bus, which runs outside of the listener's own.
    """
    own = each.own_options
    retry = each.options.retry if "retry" in own else None
    return {
        "listener": each.name,
        "kind": each.kind.value,
        "events": [event_type.name for event_type in each.event_types],
        "attempts": None if retry is None else retry.max_attempts,
        **{option: own.get(option) for option in SHOWN_OPTIONS},
        "once": each.options.once,
        "aliases": list(each.options.aliases),
        "middleware": [function_name(layer) for layer in (*middleware, *each.options.middleware)]
        if "middleware" in own
        else None,
        "delays": None if retry is None else _ceilings(retry),
        "cases": None
        if retry is None
        else {
            error.__qualname__: {"attempts": case.max_attempts, "delays": _ceilings(case)}
            for error, case in retry.cases.items()
        },
    }


def event_description(
    event_type: EventType, listeners: Sequence[Listener], middleware: Sequence[Middleware] = ()
) -> dict[str, Any]:
    """Return an event and its listeners as plain data; `middleware` is that of the bus."""
    return {
        "event": event_type.name,
        "class": f"{event_type.cls.__module__}.{event_type.cls.__qualname__}",
        "version": event_type.version,
        "ordered": event_type.ordered,
        "fields": field_names(event_type),
        "listeners": [
            {**listener_row(each, middleware), "runs": PLACES[each.kind]}
            for each in listeners
            if event_type in each.event_types
        ],
    }


def explanation(description: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of text that show an event's description."""
    ordered = "ordered by its key" if description["ordered"] else "unordered"
    yield f"{description['event']} version {description['version']}, {ordered}: {description['class']}"
    yield f"fields: {', '.join(description['fields']) or 'none'}"
    if not description["listeners"]:
        yield "no listener"
    for each in description["listeners"]:
        yield ""
        yield f"{each['listener']}: {each['kind']}, {each['runs']}"
        if each["attempts"] is not None:
            timeout = "no timeout" if each["timeout"] is None else f"timeout {each['timeout']:g} s"
            once = ", database effects once per event" if each["once"] else ""
            yield f"  {each['concurrency']} at a time per process, {timeout}{once}"
            yield f"  {_attempts(each)}; then {_end(each['on_exhausted'])}"
            for layer in each["middleware"]:
                yield f"  middleware: {layer}"
            for error, case in each["cases"].items():
                yield f"  after {error}: {_attempts(case)}"
        for option in SHOWN_OPTIONS:
            if option not in WORDED_OPTIONS and each[option]:
                yield f"  {option}: {each[option]}"


def _ceilings(retry: Retry) -> list[float]:
    """Return the longest delays between the attempts, up to the one that repeats; at most `SHOWN_DELAYS`."""
    delays = [retry.ceiling(n) for n in range(1, min(retry.max_attempts, SHOWN_DELAYS + 1))]
    while len(delays) > 1 and delays[-1] == delays[-2]:
        delays.pop()
    return delays


def _attempts(policy: Mapping[str, Any]) -> str:
    attempts: int = policy["attempts"]
    delays = [f"{each:g}" for each in policy["delays"]]
    if not delays:
        return f"{attempts} attempt"
    more = ", ..." if len(delays) < attempts - 1 else ""
    return f"{attempts} attempts, at most {', '.join(delays)}{more} s apart"


def _end(on_exhausted: str | None) -> str:
    return "its key stays blocked until `beneath bus unblock`" if on_exhausted == "block" else "a dead letter"


def _example(event_type: EventType) -> str:
    return "{" + ", ".join(f'"{name}": ...' for name in field_names(event_type)) + "}"
