"""The table in docs/upgrading.md: each file of the project has an owner, and the framework does without the example."""

import ast
import subprocess
from pathlib import Path

from tests.docs.blocks import EXAMPLE, ROOT
from tests.docs.owners import FRAMEWORK, YOURS, table, whose

IGNORED = {".venv", ".git", "data", "dist", "build", "__pycache__", ".hypothesis", ".coverage"}


def files() -> list[str]:
    """Return the tracked files; in a copy without a repository, all files but generated ones."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
        return [each for each in listed.stdout.splitlines() if (ROOT / each).exists()]
    found = [each.relative_to(ROOT) for each in ROOT.rglob("*") if each.is_file()]
    return [str(each) for each in found if not IGNORED & set(each.parts) and "_cache" not in each.parts[0]]


def is_example(path: str) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in EXAMPLE)


def test_every_file_has_an_owner() -> None:
    assert set(table().values()) == {FRAMEWORK, YOURS}
    assert [path for path in files() if whose(path) is None] == []


def test_every_path_of_the_table_and_of_the_example_exists() -> None:
    assert [path for path in (*table(), *EXAMPLE) if not (ROOT / path).exists()] == []


def test_example_belongs_to_the_clone() -> None:
    assert [path for path in files() if is_example(path) and whose(path) != YOURS] == []
    assert list(EXAMPLE) == sorted(EXAMPLE)


def test_files_kept_in_a_merge_belong_to_the_clone() -> None:
    lines = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    kept = [line.removesuffix(" merge=own").removesuffix("**") for line in lines if not line.startswith("#")]
    assert kept
    assert [path for path in kept if whose(path) != YOURS] == []


def modules() -> set[str]:
    """Return the names of the example's modules and packages."""
    paths = [Path(each.removeprefix("cmd/")) for each in EXAMPLE if "/versions/" not in each]
    return {".".join(each.with_suffix("").parts) for each in paths}


def imports(path: str) -> set[str]:
    """Return the names of the modules, and of the objects in modules, that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {each.name for each in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module, *(f"{module}.{each.name}" for each in names)}
    return found


def test_framework_imports_nothing_of_the_example() -> None:
    framework = [each for each in files() if each.endswith(".py") and whose(each) == FRAMEWORK]
    assert len(framework) > 400
    names = modules()
    used = {
        (path, each)
        for path in framework
        for each in imports(path)
        for name in names
        if f"{each}.".startswith(f"{name}.")
    }
    assert used == set()
