"""The Python examples of the documents, run as they are written."""

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks


def examples(document: Path) -> list[Block]:
    """Return the Python blocks that are not whole files; together they form one module."""
    return [each for each in blocks(document, "python") if "file" not in each.options]


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if examples(each)], ids=lambda it: str(it.relative_to(ROOT))
)
async def test_examples_of_a_document_run_in_order(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(document.stem)
    monkeypatch.setitem(sys.modules, document.stem, module)
    for block in examples(document):
        # The leading blank lines let tracebacks show the line numbers of the document.
        source = "\n" * (block.line - 1) + block.text
        code = compile(source, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, module.__dict__)  # noqa: S307 - the project's own documents
        if inspect.isawaitable(result):
            await result
