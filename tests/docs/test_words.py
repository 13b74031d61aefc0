"""The rules for wording in CONTRIBUTING.md, as far as a test can check them."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, prose

AVOIDED = re.compile(r"\b(whoever|nobody|somebody|anybody|everybody|sleepers?|bells?)\b", re.IGNORECASE)
"""Pronouns that hide who acts, and metaphors for which the table of terms has a word."""


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
