"""Applies a seeded bug to a copy of the tree, and runs the tests that must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.mutants.seeded import Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("bus", "cmd", "config", "dependencies", "docs", "infra", "models", "services", "tests")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
NOTHING_FAILED, SOMETHING_FAILED = 0, 1
"""Exit codes of pytest; with any other the tests could not run."""


def place_of(mutant: Mutant) -> Path:
    """Return the file that the seeded bug changes."""
    return ROOT / mutant.file


def caught(mutant: Mutant, folder: Path) -> bool:
    """Return whether the tests of a bug fail in a copy of the tree that has it.

    Raises:
        RuntimeError: the bug cannot be applied, or its tests cannot run.
    """
    copy = folder / mutant.name
    for each in COPIED:
        shutil.copytree(ROOT / each, copy / each, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for each in FILES:
        shutil.copy(ROOT / each, copy / each)
    place = copy / mutant.file
    text = place.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: `old` occurs {text.count(mutant.old)} times in {mutant.file}")
    place.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    done = subprocess.run(  # noqa: S603 - this project's own tests
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": f"{copy}:{copy / 'cmd'}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(copy)
    if done.returncode not in {NOTHING_FAILED, SOMETHING_FAILED}:
        raise RuntimeError(f"{mutant.name}: its tests could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == SOMETHING_FAILED
