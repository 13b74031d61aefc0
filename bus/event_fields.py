"""The types of event fields: refuses those whose values change when they are encoded and decoded."""

import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import msgspec
from msgspec import inspect

from bus.errors import InvalidEvent

_ABSTRACT: dict[object, str] = {
    AbstractSet: "set or frozenset",
    Sequence: "list or tuple",
    Collection: "list, tuple or set",
    Iterable: "list or tuple",
}


def refuse_lossy_fields(cls: type, where: str) -> None:
    """Refuse fields whose values may have another type after they are encoded and decoded.

    `Any`, `object` and a bare `dict`, `list` or `set` do not name the types inside: a date would be decoded as text, a
    tuple as a list, a dataclass as a dict. `Sequence` decodes a tuple as a list, `collections.abc.Set` a frozenset as a
    set.

    Raises:
        InvalidEvent: the message names the field and its type.
    """
    for path, problem in _problems(inspect.type_info(cls), "", set()):
        raise InvalidEvent(f"{where}: field {path} {problem}")
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        for abstract in _abstract(hint):
            raise InvalidEvent(
                f"{where}: field {name} is a {abstract}, which does not name the type to decode: "
                f"use {_ABSTRACT[abstract]}"
            )


def _problems(node: object, path: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, inspect.AnyType):
        yield path, "holds Any, whose values may be decoded as another type: name the type"
    elif isinstance(node, inspect.CustomType):
        yield (
            path,
            f"holds {node.cls.__name__}, which msgspec can neither encode nor validate: use another type",
        )
    elif isinstance(node, inspect.Field):
        yield from _problems(node.type, f"{path}.{node.name}" if path else node.name, seen)
    elif isinstance(node, tuple):
        for each in node:
            yield from _problems(each, path, seen)
    elif isinstance(node, inspect.Metadata):
        yield from _problems(node.type, path, seen)
    elif isinstance(node, inspect.Type) and isinstance(node, msgspec.Struct):
        for name in node.__struct_fields__:
            value = getattr(node, name)
            if isinstance(value, inspect.Type | tuple):
                yield from _problems(value, path, seen)


def _abstract(hint: object) -> Iterator[object]:
    for each in (typing.get_origin(hint), hint):
        if isinstance(each, type) and each in _ABSTRACT:
            yield each
    for argument in typing.get_args(hint):
        if not isinstance(argument, list):  # the parameters of a Callable, which msgspec refuses anyway
            yield from _abstract(argument)
