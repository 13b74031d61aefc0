"""The rule in CONTRIBUTING.md against private names of libraries, where the linter does not check it."""

import ast
import importlib
from collections.abc import Iterator
from inspect import getmembers, isclass, isfunction

from tests.docs.blocks import ROOT

SOURCE = ("bus", "cmd", "dependencies", "infra", "models", "services")

ALLOWED = [("cmd/beneath/http/core/strict.py", "h11._receivebuffer")]
"""Imports of private modules. The file says why, and tests/http/test_framing.py holds what it relies on."""

DOCUMENTED = [("dependencies/section.py", "Url", "_display")]
"""Overridden methods that the library documents for subclasses: pydantic, of its secrets."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each file, except migrations, which Alembic runs."""
    for folder in SOURCE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "migrations" not in file.parts:
                yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def own_names(cls: ast.ClassDef) -> tuple[set[str], set[str]]:
    """Return the private names that a class defines, and those that it reads from itself or from `super()`."""
    defined, read = set[str](), set[str]()
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            target = ast.unparse(node.value)
            if target in {"self", "cls", "super()"}:
                (defined if isinstance(node.ctx, ast.Store) else read).add(node.attr)
    return defined, read


def test_private_modules_and_names_of_libraries_are_not_imported() -> None:
    found = [
        (path, node.module)
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        if any(map(is_private, [*node.module.split("."), *(alias.name for alias in node.names)]))
    ]
    assert found == ALLOWED


def test_classes_read_no_private_attribute_of_a_library_base() -> None:
    classes = [(path, node) for path, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert len(classes) > 300
    defined: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for _, cls in classes:
        defined.setdefault(cls.name, set()).update(own_names(cls)[0])
        bases.setdefault(cls.name, set()).update(ast.unparse(it).partition("[")[0].split(".")[-1] for it in cls.bases)

    def known(name: str) -> set[str]:
        return defined.get(name, set()).union(*(known(base) for base in bases.get(name, ()) if base != name))

    foreign = [(path, cls.name, own_names(cls)[1] - known(cls.name)) for path, cls in classes]
    assert [it for it in foreign if it[2]] == []


def test_classes_override_no_private_method_of_a_library() -> None:
    found = []
    for path, tree in sources():
        if not any(isinstance(node, ast.ClassDef) and node.bases for node in tree.body):
            continue
        module = importlib.import_module(path.removeprefix("cmd/").removesuffix(".py").replace("/", "."))
        for name, cls in getmembers(module, isclass):
            if cls.__module__ != module.__name__:
                continue
            library = [base for base in cls.__mro__ if f"{base.__module__}.".split(".")[0] not in {*SOURCE, "beneath"}]
            found += [
                (path, name, method)
                for method in vars(cls)
                if is_private(method)
                and not method.endswith("_")  # the documented hooks of enums
                and any(isfunction(vars(base).get(method)) for base in library)
            ]
    assert found == DOCUMENTED
