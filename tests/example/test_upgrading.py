"""The steps of docs/upgrading.md: a clone with its own service and without the example merges a later framework."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.docs.project import Project
from tests.example.greeting import CHANGES, FILES, SETTINGS
from tests.example.shipped import shipped_copy

PAGE = ROOT / "docs" / "upgrading.md"

GIT = shutil.which("git") or "git"

IDENTITY = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{role}_NAME": "Ada" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "ada@example.com" for role in ("AUTHOR", "COMMITTER")},
}

LATER_FRAMEWORK = (
    ("infra/clock.py", "class SystemClock:", "LATER = True\n\n\nclass SystemClock:"),
    ("dependencies/settings.py", "class LogSettings(Section):\n", "class LogSettings(Section):\n    # later\n"),
    ("cmd/beneath/http/core/domain.py", "class Domain:\n", "# later\nclass Domain:\n"),
    ("tests/world.py", "class World(AllServices):\n", "class World(AllServices):  # later\n"),
    ("pyproject.toml", '    "alembic', '    # later\n    "alembic'),
    ("requirements/production.txt", "alembic==", "# later\nalembic=="),
)
"""Changes of the framework: file, old text, new text."""

LATER_EXAMPLE = (
    ("services/organization/service.py", "class OrganizationService:", "# later\nclass OrganizationService:"),
    ("dependencies/services.py", "        self.project = Thread", "        # later\n        self.project = Thread"),
    ("cmd/beneath/http/domains.py", "    projects.DOMAIN,\n", "    # later\n    projects.DOMAIN,\n"),
    ("config/.default.yaml", "organization:\n", "organization: # later\n"),
    ("README.md", "# Beneath\n", "# Beneath, later\n"),
    ("docs/example-paths.txt", "services/audit\n", "models/migrations/versions/0004_later.py\nservices/audit\n"),
)
"""Changes of the example, in files that the clone has deleted or changed."""

QUICK = (
    *("tests/docs/test_references.py", "tests/docs/test_log_events.py", "tests/docs/test_running.py"),
    *(
        "tests/services",
        "tests/models",
        "tests/dependencies/test_container.py",
        "tests/dependencies/test_completeness.py",
    ),
    *("tests/http/test_greetings.py", "tests/http/test_openapi.py", "tests/http/test_secrets.py"),
    *("tests/cli/test_application.py", "tests/cli/test_startables.py"),
)
"""Tests of the framework and of the clone that the merged tree must pass."""

CONTRACTS = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

SIGN_UP = """
import asyncio
from beneath.application import Application
from dependencies import Container, Settings

async def main():
    async with Application(Container(settings=Settings.model_validate({"control": {"port": 0}}))).running("all") as it:
        user = await it.services.user.create("ada@example.com", "Ada")
        while not (found := await it.services.greeting.list_greetings(user.id)):
            await asyncio.sleep(0.01)
    print([each.text for each in found])

asyncio.run(main())
"""

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]


def git(project: Project, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(  # noqa: S603 - the arguments are the test's own
        [GIT, *arguments], cwd=project.path, env={**os.environ, **IDENTITY}, capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, f"git {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def commit(project: Project, message: str) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", message)


def passes(project: Project, *command: str) -> str:
    outcome = project.run(*command, timeout=1500)
    assert outcome.code == 0, f"{' '.join(command)}\n{outcome.out}{outcome.err}"
    return outcome.out


def edit(project: Project, changes: tuple[tuple[str, str, str], ...]) -> None:
    """Replace the first occurrence of each text, which must exist."""
    for name, old, new in changes:
        file = project.path / name
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{name}: {old!r}"
        file.write_text(text.replace(old, new, 1), encoding="utf-8")


def write(project: Project, name: str, text: str) -> None:
    file = project.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def carry_out(project: Project, step: str, *, url: str = "", codes: tuple[int, ...] = (0,)) -> None:
    """Run the commands of a step of the page; `make fmt` without make, because the copy has no environment."""
    (block,) = (each for each in blocks(PAGE, "sh") if each.options.get("step") == step)
    for line in block.text.replace("URL", url).splitlines():
        command, *arguments = shlex.split(line)
        if command == "git":
            git(project, *arguments, codes=codes)
        else:
            assert command == "beneath", line
            passes(project, "-m", "beneath", *arguments)


def format_source(project: Project) -> None:
    for command in (["format", "--quiet"], ["check", "--fix", "--quiet"], ["format", "--quiet"]):
        passes(project, "-m", "ruff", *command)


@pytest.fixture
def upstream(tmp_path: Path) -> Project:
    """Return the project as the repository that clones merge from."""
    project = shipped_copy(tmp_path / "upstream")
    git(project, "init", "--quiet", "--initial-branch=main")
    commit(project, "first")
    return project


@pytest.fixture
def clone(tmp_path: Path, upstream: Project) -> Project:
    """Return a clone without the example, and with the service of `tests.example.greeting`."""
    project = Project(tmp_path / "clone")
    git(upstream, "clone", "--quiet", str(upstream.path), str(project.path))
    carry_out(project, "delete")
    for block in blocks(PAGE, "diff"):
        project.apply(block)
    carry_out(project, "migrate")
    edit(project, CHANGES)
    settings = project.path / "dependencies" / "service_settings.py"
    settings.write_text(settings.read_text() + SETTINGS)
    for name, text in FILES.items():
        write(project, name, text)
    passes(project, "-m", "beneath", "migrate", "new", "Greetings")
    format_source(project)
    passes(project, "-m", "beneath", "migrate", "up")
    commit(project, "our own")
    return project


def change_upstream(upstream: Project) -> str:
    """Commit later changes of framework and example; return the name of the bus's new migration."""
    edit(upstream, LATER_FRAMEWORK)
    edit(upstream, LATER_EXAMPLE)
    versions = "infra/db/migrations/versions"
    latest = max(file.stem for file in (upstream.path / "infra").rglob("migrations/versions/0*.py"))
    number = int(latest[:4]) + 1
    source = 'revision = "{}"\ndown_revision = "{}"\nbranch_labels = None\ndepends_on = None\n\n\n'
    steps = "def upgrade() -> None: ...\n\n\ndef downgrade() -> None: ...\n"
    later = '"""Later."""\n\n' + source + steps
    write(upstream, f"{versions}/{number:04}_later.py", later.format(f"{number:04}", latest[:4]))
    write(upstream, "models/migrations/versions/0004_later.py", later.format("0004", "0003"))
    write(upstream, "services/organization/later.py", '"""Later."""\n')
    write(upstream, "tests/example/test_later.py", "from services.organization import later\n\nassert later\n")
    commit(upstream, "later")
    return f"bus/{number:04}_later"


def test_clone_without_the_example_merges_later_fixes_and_passes_its_tests(upstream: Project, clone: Project) -> None:
    migration = change_upstream(upstream)
    carry_out(clone, "remote", url=str(upstream.path))
    carry_out(clone, "merge", codes=(0, 1))
    carry_out(clone, "resolve")
    assert git(clone, "diff", "--name-only", "--diff-filter=U") == ""
    git(clone, "commit", "--quiet", "--no-edit")

    for name, old, new in LATER_FRAMEWORK:
        assert new in (clone.path / name).read_text(encoding="utf-8"), (name, old)
    for name in (clone.path / "docs" / "example-paths.txt").read_text().split():
        assert not (clone.path / name).exists(), name
    for name, text in FILES.items():
        assert (clone.path / name).read_text(encoding="utf-8") == text, name
    for name, _, new in CHANGES:
        assert new.strip() in (clone.path / name).read_text(encoding="utf-8"), name

    shutil.copytree(ROOT / ".mypy_cache", clone.path / ".mypy_cache", dirs_exist_ok=True)
    passes(clone, "-m", "ruff", "check")
    passes(clone, "-m", "mypy")
    passes(clone, "-c", CONTRACTS)
    assert migration in passes(clone, "-m", "beneath", "migrate", "up")
    assert re.search(r"\['Hello, Ada'\]$", passes(clone, "-c", SIGN_UP))
    passes(clone, "-m", "pytest", "--collect-only", "-q")
    passes(clone, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not thorough", *QUICK)
