"""The environments of peers and of the plots: one each under build/bench, made from the lists of pinned packages."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
PLOTS = "plots"


class NotInstalled(Exception):
    """An environment cannot be made."""


def requirements(name: str) -> Path:
    """Return the list of pinned packages of an environment."""
    folder = Path(__file__).parent
    return folder / f"{PLOTS}.txt" if name == PLOTS else folder / "peers" / f"{name}.txt"


def interpreter(name: str | None) -> Path:
    """Return the Python of an environment, made if it is missing or its list has changed; None: that of this process.

    Raises:
        NotInstalled: pip failed; the text is its last line.
    """
    if name is None:
        return Path(sys.executable)
    folder, pinned = BUILD / name, requirements(name).read_text("utf-8")
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if installed.exists() and installed.read_text("utf-8") == pinned:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", str(folder))
    options = ("--quiet", "--disable-pip-version-check")
    _run(str(python), "-m", "pip", "install", *options, "--requirement", str(requirements(name)))
    installed.write_text(pinned, "utf-8")
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this module's commands
    if done.returncode:
        raise NotInstalled((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])


def pinned_version(name: str, package: str) -> str:
    """Return the pinned version of a package in the list of an environment."""
    for line in requirements(name).read_text("utf-8").splitlines():
        found, _, version = line.partition("==")
        if found.lower() == package.lower():
            return version
    raise KeyError(package)
