"""The table of log events in docs/operations.md: all calls in the source, with their levels and fields."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.docs.blocks import ROOT, prose
from tests.docs.owners import FRAMEWORK, whose
from tests.docs.sources import nodes

SOURCES = ("bus", "cmd", "dependencies", "infra")
LOGGERS = {"log", "_log"}
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
"""The level of each method of a logger that the source may call."""

FORWARDING = "log"
"""The method of an attempt that forwards events to a logger; its arguments are the level and the event's name."""

RENDERED = {"exc_info", "exception"}
"""Fields that hold a traceback; the table leaves them out."""

IRREGULAR = {"lost", "left"}
PRONOUNS = {"it", "its", "he", "she", "they", "their", "them", "we", "our", "this", "that", "what", "who", "nobody"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a logger."""

    place: str
    level: str
    event: str | None
    """None where the first argument is not a literal."""

    fields: frozenset[str]


def sources() -> Iterator[tuple[str, tuple[ast.AST, ...]]]:
    """Yield the path and all nodes of each file of the framework; the events of services and routes are their own."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if whose(name) == FRAMEWORK:
                yield name, nodes(path)


@functools.cache
def calls() -> tuple[Call, ...]:
    """Return all calls of loggers in the source."""
    return tuple(_calls())


def _calls() -> Iterator[Call]:
    for path, found in sources():
        for node in found:
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in LOGGERS:
                    assert method in LEVELS, f"{path}:{node.lineno}: {method}"
                    yield _call(path, node, LEVELS[method], node.args[:1])
                case ast.Call(func=ast.Attribute(attr=method)) if method == FORWARDING:
                    yield _call(path, node, str(_literal(node.args[:1])), node.args[1:2])


def _call(path: str, node: ast.Call, level: str, event: list[ast.expr]) -> Call:
    fields = {each.arg for each in node.keywords if each.arg is not None}
    return Call(f"{path}:{node.lineno}", level, _literal(event), frozenset(fields - RENDERED))


def _literal(arguments: list[ast.expr]) -> str | None:
    match arguments:
        case [ast.Constant(value=str(value))]:
            return value
    return None


def table() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and fields of each event that the page lists."""
    section = prose(ROOT / "docs" / "operations.md").partition("\n## Log events\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \| ([^|]*) \| [^|]+ \|$", section, flags=re.MULTILINE)
    assert len(rows) == len([line for line in section.splitlines() if line.startswith("| `")])
    assert [event for event, *_ in rows] == sorted({event for event, *_ in rows})
    return {event: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for event, levels, fields in rows}


def test_every_event_name_is_a_literal() -> None:
    assert len(calls()) > 60
    assert [each.place for each in calls() if each.event is None] == []


def test_every_logger_has_a_known_variable_name() -> None:
    for path, found in sources():
        made = [node for node in found if isinstance(node, ast.Call) and _is_get_logger(node)]
        names = {
            target.id
            for node in found
            if isinstance(node, ast.AnnAssign | ast.Assign) and node.value in made
            for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
            if isinstance(target, ast.Name)
        }
        assert len(made) == len(names), path
        assert names <= LOGGERS, path


def _is_get_logger(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "get_logger"


def test_loggers_are_only_called_directly() -> None:
    for path, found in sources():
        direct = {id(node.value) for node in found if isinstance(node, ast.Attribute) and node.attr in LEVELS}
        inside = {
            id(each)
            for node in found
            if isinstance(node, ast.FunctionDef) and node.name == FORWARDING
            for each in ast.walk(node)
        }
        for node in found:
            if isinstance(node, ast.Name) and node.id in LOGGERS and isinstance(node.ctx, ast.Load):
                assert id(node) in direct | inside, f"{path}:{node.lineno}"


def test_table_lists_all_events_with_their_levels_and_fields() -> None:
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for each in calls():
        levels[str(each.event)].add(each.level)
        fields[str(each.event)] |= each.fields
    listed = table()
    assert sorted(listed) == sorted(levels)
    assert {event: found for event, (found, _) in listed.items()} == levels
    # A call may add fields from a mapping (`**fields`), which the source does not spell out.
    missing = {event: fields[event] - named for event, (_, named) in listed.items() if not fields[event] <= named}
    assert missing == {}


def test_event_names_are_short_lower_case_and_contain_a_participle() -> None:
    for event in {str(each.event) for each in calls()}:
        words = re.split(r"[ -]", event)
        assert re.fullmatch(r"[a-z][a-z -]*", event), event
        assert len(words) <= 5, event
        assert not PRONOUNS & set(words), event
        assert any(word in IRREGULAR or word.endswith(("ed", "ing")) or word == "taken" for word in words), event
