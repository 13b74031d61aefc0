"""The glossary: its order, its format, and the use of its terms."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, prose
from tests.docs.sources import nodes

GLOSSARY = ROOT / "docs" / "glossary.md"
SOURCES = ("bus", "cmd", "dependencies", "infra", "models", "services")


def rows(name: str) -> list[list[str]]:
    """Return the cells of all table rows of a document, without header and rule."""
    lines = re.findall(r"^\| .* \|$", prose(ROOT / name), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


TERMS = [term for term, _ in rows("docs/glossary.md")[1:]]


def docstrings() -> Iterator[str]:
    """Yield all docstrings of the source, those below assignments included."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in nodes(path):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    yield str(node.value.value)


@pytest.fixture(scope="module")
def words() -> str:
    """Return all documentation except the glossary, and all docstrings, as one text with single blanks."""
    documents = [prose(each) for each in DOCUMENTS if each != GLOSSARY]
    return " ".join(" ".join([*documents, *docstrings()]).split())


def test_terms_are_sorted_and_defined_once() -> None:
    assert len(TERMS) > 50
    assert sorted(set(TERMS), key=str.casefold) == TERMS


def test_each_meaning_is_one_sentence_or_two_on_one_line() -> None:
    for term, meaning in rows("docs/glossary.md")[1:]:
        assert meaning.endswith("."), term
        assert len(meaning) <= 130, term


def test_each_term_is_used(words: str) -> None:
    unused = [each for each in TERMS if not re.search(rf"\b{re.escape(each)}(s|es|d|ed)?\b", words, re.IGNORECASE)]
    assert unused == []


def test_terms_kept_by_the_style_rules_are_defined() -> None:
    (kept,) = (use for use, *others in rows("CONTRIBUTING.md") if others == ["synonyms of these"])
    assert set(kept.split(", ")) <= set(TERMS)
