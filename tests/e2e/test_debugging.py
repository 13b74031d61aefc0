"""The debugger works in the project's root: the folder `cmd` does not hide the standard library's module `cmd`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import PATIENCE, ROOT, clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

FAILING = """
def test_that_fails() -> None:
    answer = 41
    assert answer == 42
"""


def python(*arguments: str, answers: str = "") -> "subprocess.CompletedProcess[str]":
    """Run this interpreter in the project's root, with `answers` as standard input."""
    return subprocess.run(  # noqa: S603 - the tests' own arguments
        [sys.executable, *arguments],
        cwd=ROOT,
        env=clean_environment(),
        input=answers,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_module_cmd_is_that_of_the_standard_library() -> None:
    done = python("-c", "import cmd; print(cmd.Cmd.__module__, cmd.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cmd ")
    assert str(ROOT) not in done.stdout
    assert not (ROOT / "cmd" / "__init__.py").exists()


def test_pdb_runs_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import beneath\n\nprint('reached')\n")
    done = python("-m", "pdb", str(script), answers="next\nnext\nquit\n")
    assert done.returncode == 0, done.stderr
    assert "reached" in done.stdout
    assert done.stderr == ""


def test_pytest_stops_in_pdb_at_a_failure(tmp_path: Path) -> None:
    test = tmp_path / "test_throwaway.py"
    test.write_text(FAILING)
    options = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider")
    done = python("-m", "pytest", "--pdb", *options, str(test), answers="p answer + 1\nq\n")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "(Pdb) 42" in done.stdout
    assert "Exit: Quitting debugger" in done.stdout
