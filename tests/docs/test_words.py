"""The rules for wording in CONTRIBUTING.md, as far as a test can check them."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, prose
from tests.docs.owners import FRAMEWORK, whose
from tests.docs.sources import nodes, tree

AVOIDED = re.compile(r"\b(whoever|nobody|somebody|anybody|everybody|sleepers?|bells?)\b", re.IGNORECASE)
"""Pronouns that hide who acts, and metaphors for which the table of terms has a word."""

TESTED = ("bus", "cli", "contract", "dependencies", "docs", "infra", "simulation", "torture")
"""The folders of tests whose names are checked; a clone adds its tests to the others."""

LONGEST_NAME = 13
"""The largest number of words in the name of a test: about 12."""

VAGUE = {"anyone", "everyone", "what", "whatever", "who", "whom"}
"""Further pronouns that a test's name can always replace by a noun."""


def names() -> list[str]:
    """Return the names of all test functions of the framework."""
    files = [file for folder in TESTED for file in (ROOT / "tests" / folder).rglob("test_*.py")]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node.name for file in files for node in nodes(file) if isinstance(node, functions)]
    return [name for name in found if name.startswith("test_")]


def sentences(document: Path) -> str:
    """Return a document's prose without code, link targets and the style rules, which quote what they forbid."""
    text = prose(document)
    if document == ROOT / "CONTRIBUTING.md":
        rules, rest = text.partition("\n## Style\n")[2].split("\n## ", 1)
        assert AVOIDED.search(rules)
        text = text.replace(rules, "") + rest
    return re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda it: str(it.relative_to(ROOT)))
def test_documents_avoid_indefinite_pronouns_and_metaphors(document: Path) -> None:
    assert AVOIDED.findall(sentences(document)) == []


def test_test_names_are_short_and_name_their_subject() -> None:
    found = names()
    assert len(found) > 1000
    words = {name: name.removeprefix("test_").split("_") for name in found}
    assert [name for name, said in words.items() if len(said) > LONGEST_NAME] == []
    assert [name for name, said in words.items() if AVOIDED.search(" ".join(said)) or VAGUE & set(said)] == []


SOURCES = ("bus", "cmd", "dependencies", "infra")


def classes(*folders: str) -> dict[str, list[str]]:
    """Return the files of all public top-level classes of the framework in these folders by the name of the class."""
    found: dict[str, list[str]] = {}
    for file in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        for node in tree(file).body if whose(path) == FRAMEWORK else ():
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path)
    return found


def test_all_classes_of_the_framework_have_different_names() -> None:
    found = classes(*SOURCES)
    assert len(found) > 300
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


@pytest.mark.parametrize("folder", TESTED)
def test_classes_of_one_folder_of_tests_have_different_names(folder: str) -> None:
    assert {name: files for name, files in classes(f"tests/{folder}").items() if len(files) > 1} == {}
