"""The rules for wording in CONTRIBUTING.md, as far as a test can check them."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, prose

AVOIDED = re.compile(r"\b(whoever|nobody|somebody|anybody|everybody|sleepers?|bells?)\b", re.IGNORECASE)
"""Pronouns that hide who acts, and metaphors for which the table of terms has a word."""

TESTED = ("bus", "cli", "contract", "dependencies", "docs", "infra", "simulation", "torture")
"""The folders of tests that belong to the frame; the others may be a project's own."""

LONGEST_NAME = 13
"""The largest number of words in the name of a test: about 12."""

VAGUE = {"anyone", "everyone", "what", "whatever", "who", "whom"}
"""Further pronouns that a test's name can always replace by a noun."""


def names() -> list[str]:
    """Return the names of all test functions of the frame."""
    files = [file for folder in TESTED for file in (ROOT / "tests" / folder).rglob("test_*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in nodes if isinstance(node, functions) and node.name.startswith("test_")]


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
