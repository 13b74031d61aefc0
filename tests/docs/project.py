"""A copy of the project on which the steps of a document are carried out."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.blocks import ROOT, Block

LEFT_OUT = shutil.ignore_patterns(
    ".venv",
    ".git",
    "data",
    "dist",
    "build",
    "__pycache__",
    ".hypothesis",
    ".coverage",
    ".pytest_cache",
    ".import_linter_cache",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Project:
    """A copy of the project."""

    path: Path

    def apply(self, block: Block) -> None:
        """Write the file that a block contains, or apply the change that it shows."""
        target = self.path / block.options["file"]
        if block.language == "diff":
            assert target.exists(), f"{block}: there is no {block.options['file']} to change"
            target.write_text(changed(target.read_text(), block))
            return
        assert not target.exists(), f"{block}: {block.options['file']} is there already"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None, timeout: float = 240) -> Outcome:
        """Run Python with these arguments in the copy, with the copy's packages."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENEATH_", "PYTEST_"))}
        path = os.pathsep.join([str(self.path), str(self.path / "cmd")])
        done = subprocess.run(  # noqa: S603 - the arguments are the tests' own
            [sys.executable, "-P", *arguments],
            cwd=self.path,
            env={**kept, **(environ or {}), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


def copy_project(path: Path) -> Project:
    """Copy the project without generated files, but with the type checker's cache, which saves a minute."""
    shutil.copytree(ROOT, path, ignore=LEFT_OUT)
    return Project(path)


def changed(text: str, block: Block) -> str:
    """Return `text` with the hunks of a block applied, each located by its own lines."""
    lines = text.splitlines()
    for hunk in block.text.split("@@\n"):
        given = hunk.splitlines()
        before = [each[1:] for each in given if not each.startswith("+")]
        after = [each[1:] for each in given if not each.startswith("-")]
        places = [at for at in range(len(lines) - len(before) + 1) if lines[at : at + len(before)] == before]
        assert len(places) == 1, f"{block}: these lines stand {len(places)} times in the file:\n" + "\n".join(before)
        lines[places[0] : places[0] + len(before)] = after
    return "".join(f"{each}\n" for each in lines)
