"""References in the documents: tests, files, headings, commands, targets, routes and settings exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.routing import Route

from beneath.http.app import create_app
from dependencies.settings import FrameworkSettings, Settings
from dependencies.sources import variable, walk_leaves
from tests.docs.blocks import DOCUMENTS, ROOT, SHIPPED, Block, blocks, is_removed, prose
from tests.docs.commands import check_command

KEYS = {".".join(path) for path, _ in walk_leaves(Settings)} | set(Settings.model_fields)
VARIABLES = {variable(path) for path, _ in walk_leaves(Settings)}
INVENTED = {"invoicing.project_price", "BENEATH_INVOICING_PROJECT_PRICE", "BENEATH_SERVICE_HOST", "BENEATH_TEST_STACK"}
"""Names that the guide adds, that other projects define, or that only tests read."""

FOREIGN = {"export", "git", ".venv/bin/python", "python3", "/srv/beneath/.venv/bin/pip", "sed"} | {
    *("pg_dump", "pg_restore", "valkey-cli"),
}
"""Programs in shell blocks that are not commands of this project."""

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda it: str(it.relative_to(ROOT)))


def test_every_document_and_folder_is_checked() -> None:
    assert {each.parent for each in DOCUMENTS} >= {ROOT, ROOT / "docs", ROOT / "docs" / "adr", ROOT / "bus"}
    assert {each.relative_to(ROOT) for each in DOCUMENTS} >= {Path("CONTRIBUTING.md"), Path("docs/guide.md")}


@documents
def test_named_tests_exist(document: Path) -> None:
    named = re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", prose(document))
    missing = [f"{file}::{name}" for file, name in named if not _is_there(file, name)]
    assert missing == []


def test_paths_in_the_tables_of_folders_exist() -> None:
    missing = []
    readmes = [each for each in DOCUMENTS if each.name == "README.md" and each.parent.parent == ROOT]
    for readme in readmes:
        for cell in re.findall(r"^\| (`.*?) \|", prose(readme), flags=re.MULTILINE):
            for name in re.findall(r"`([\w/]+(?:/|\.py))`", cell):
                path = (readme.parent / name).relative_to(ROOT).as_posix()
                if not any(readme.parent.rglob(name)) and not is_removed(path):
                    missing.append(path)
    assert len(readmes) > 5
    assert missing == []


@pytest.mark.parametrize("folder", ["bus", "bus/publishing", "bus/worker"])
def test_table_of_the_bus_has_every_module(folder: str) -> None:
    listed = re.findall(r"`(\w+\.py)`", prose(ROOT / "bus" / "README.md"))
    modules = [each.name for each in (ROOT / folder).glob("*.py") if each.name != "__init__.py"]
    assert len(modules) > 10
    assert [each for each in modules if each not in listed] == []


def test_every_guarantee_names_its_tests() -> None:
    promises = prose(ROOT / "docs" / "guarantees.md").split("\n## ")[1:-1]
    numbers = [int(each.partition(".")[0]) for each in promises]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 16
    for each in promises:
        assert "::test_" in each, each.partition("\n")[0]


def test_every_decision_has_its_own_number_and_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    files = sorted(each.name for each in folder.glob("0*.md"))
    lines = [" ".join(each.split()) for each in re.split(r"\n(?=\d)", (folder / "README.md").read_text())[1:]]
    assert [int(each[:4]) for each in files] == list(range(1, len(files) + 1))
    assert lines == [f"{int(each[:4])}. [{_title(folder / each)}]({each})" for each in files]


@documents
def test_link_targets_exist(document: Path) -> None:
    broken = [link for link in _links(document) if not _leads_somewhere(document, link)]
    assert broken == []


@documents
def test_commands_in_shell_blocks_exist(document: Path) -> None:
    for block, line in _shell_lines(document):
        command, *arguments = shlex.split(line, comments=True)
        match command:
            case "beneath":
                check_command(block, arguments)
            case "make":
                assert _targets(arguments) <= TARGETS, f"{block}: {line}"
            case "curl":
                assert _route(arguments) in set(_routes()), f"{block}: {line}"
            case "sudo":
                for run in re.findall(r"\.venv/bin/beneath ([^';]*)", line):
                    check_command(block, shlex.split(run))
            case _:
                assert command in FOREIGN, f"{block}: {line}"


@documents
def test_commands_in_sentences_exist(document: Path) -> None:
    for text in re.findall(r"`(beneath [a-z][^`]*)`", prose(document)):
        check_command(text, shlex.split(text.replace("...", ""))[1:], whole=False)
    for target in re.findall(r"`make ([a-z][^`]*)`", prose(document)):
        assert _targets(target.split()) <= TARGETS


@documents
def test_settings_exist(document: Path) -> None:
    text = prose(document)
    # A section of a clone's own may have the name of one of its services, and so begin the name of a listener.
    names = [*FrameworkSettings.model_fields, *(["organization"] if SHIPPED else [])]
    sections = "|".join(name for name in names if name != "env")
    keys = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=\w+)?`", text))
    # `bus.testing`, `bus.start()` and similar names are not settings.
    wrong = {key for key in keys - KEYS - INVENTED if not _is_code(key)}
    assert wrong == set()
    assert set(re.findall(r"\bBENEATH_[A-Z][A-Z_]*[A-Z]\b", text)) <= VARIABLES | INVENTED


def _targets(arguments: list[str]) -> set[str]:
    """Return the arguments of `make` without variables, such as QUICK=1."""
    return {each for each in arguments if "=" not in each}


def _is_there(file: str, name: str) -> bool:
    if is_removed(file):
        return True
    path = ROOT / file
    return path.exists() and (not name or _defines(path, name))


def _defines(path: Path, name: str) -> bool:
    return re.search(rf"^\s*(async )?def {name}\(", path.read_text(), flags=re.MULTILINE) is not None


def _links(document: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if not link.startswith(("http://", "https://")):
            yield link


def _title(decision: Path) -> str:
    return decision.read_text().partition("\n")[0].partition(". ")[2]


def _leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists():
        return target.is_relative_to(ROOT) and is_removed(str(target.relative_to(ROOT)))
    return not anchor or anchor in _anchors(target)


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _shell_lines(document: Path) -> Iterator[tuple[Block, str]]:
    for block in blocks(document, "sh"):
        for line in block.text.splitlines():
            if line:
                yield block, line


def _routes() -> Iterator[tuple[str, str]]:
    unused = cast("Any", None)
    app = create_app(unused, correlate=unused, ready={}, metrics=unused)
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), re.sub(r"\{\w+\}", "*", path)
    for route in app.routes:
        if isinstance(route, Route):
            yield "GET", route.path


def _route(arguments: list[str]) -> tuple[str, str]:
    method = "POST" if "-d" in arguments else "GET"
    (address,) = (each for each in arguments if "127.0.0.1:" in each)
    path = address.partition("127.0.0.1:")[2].partition("/")[2]
    return method, re.sub(r"\$\w+", "*", f"/{path}")


def _is_code(name: str) -> bool:
    package, *_ = name.split(".")
    is_module = (ROOT / package).is_dir() and (ROOT / Path(*name.split("."))).with_suffix(".py").exists()
    return is_module or name.endswith(".py")
