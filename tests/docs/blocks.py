"""The project's documents and their code blocks."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOLDERS = ("bus", "cmd", "config", "dependencies", "infra", "models", "services", "tests")

SHIPPED = (ROOT / "tests" / "example").is_dir()
"""Whether the tree contains the tests of the shipped example; a clone that replaced the example does not."""

EXAMPLE = tuple((ROOT / "docs" / "example-paths.txt").read_text(encoding="utf-8").split())
"""The files and folders of the shipped example."""

OWN = ("README.md", "CHANGELOG.md")
"""The pages that a clone replaces together with the example."""

DOCUMENTS = (
    ROOT / "CONTRIBUTING.md",
    *(ROOT / name for name in OWN if SHIPPED),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name / "README.md" for name in FOLDERS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced code block: its info string and its contents."""

    document: Path
    line: int
    """Of its first line of text, from 1."""

    language: str
    options: Mapping[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path, language: str | None = None) -> Iterator[Block]:
    """Yield the code blocks of a document in order, all or those in one language."""
    lines = document.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    header = ""
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if start is None:
            start, header = number + 1, line.removeprefix("```")
            continue
        name, *options = shlex.split(header) or [""]
        if language in {None, name}:
            yield Block(
                document=document,
                line=start,
                language=name,
                options=dict(each.split("=", 1) for each in options),
                text="".join(f"{each}\n" for each in lines[start - 1 : number - 1]),
            )
        start = None
    assert start is None, f"{document}: the block from line {start} on does not end"


def is_removed(path: str) -> bool:
    """Return whether a path belongs to the shipped example, which this tree does not contain."""
    return not SHIPPED and any(path == each or path.startswith(f"{each}/") for each in EXAMPLE)


def prose(document: Path) -> str:
    """Return a document's text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
