"""The steps of the guide, carried out on a copy of the project."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.project import Project
from tests.example.shipped import shipped_copy

GUIDE = ROOT / "docs" / "guide.md"

CONCERNED = ("cmd/beneath/startables/control_server.py", "cmd/beneath/application.py", "tests/http/conftest.py")
"""Unchanged files that must still agree with the files that the steps change."""

QUICK = (
    *("tests/docs", "tests/http", "tests/services", "tests/models", "tests/dependencies", "tests/mutants"),
    *("tests/cli/test_application.py", "tests/cli/test_commands.py", "tests/cli/test_startables.py"),
    *("tests/example/docs", "tests/example/services", "tests/example/postgres"),
    *("tests/example/http", "tests/example/cli"),
)
"""Tests that must pass beside any service that a user adds."""

CONTRACTS = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

REPORT = """
import asyncio
from structlog.testing import capture_logs
from beneath.application import Application
from dependencies import Container, Settings
from dependencies.section import Url
from dependencies.settings import DbSettings

async def main():
    container = Container(settings=Settings(db=DbSettings(url=Url("sqlite:///report.db"))))
    with capture_logs() as lines:
        async with Application(container).running("invoicing-report"):
            while not any(line["event"] == "invoices totalled" for line in lines):
                await asyncio.sleep(0.01)
    print([line["cents"] for line in lines if line["event"] == "invoices totalled"])

asyncio.run(main())
"""

KEPT = """
from tests.http.conftest import Api, problem
from tests.http.test_invoices import issued


async def test_project_with_an_invoice_is_not_deleted(api: Api) -> None:
    ada = await api.sign_up()
    invoice = (await issued(ada)).json()
    path = f"/v1/organizations/{await ada.organization()}/projects/{invoice['project_id']}"
    problem(await ada("DELETE", path), 409, "conflict")
    assert (await ada("GET", path)).status_code == 200
"""

pytestmark = pytest.mark.timeout(300)


def edits(part: str) -> list[Block]:
    """Return the blocks of one part of the guide that write or change a file."""
    lines = GUIDE.read_text().splitlines()
    starts = [number for number, line in enumerate(lines, start=1) if line.startswith("## ")]
    begin = next(number for number in starts if lines[number - 1].startswith(f"## {part}"))
    end = min((number for number in starts if number > begin), default=len(lines))
    return [each for each in blocks(GUIDE) if begin < each.line < end and "file" in each.options]


def carried_out(project: Project, steps: Sequence[Block]) -> None:
    """Apply the blocks, and run the checks of `make check` on the changed files."""
    for step in steps:
        project.apply(step)
    touched = sorted({each.options["file"] for each in steps if each.options["file"].endswith(".py")})
    passes(project, "-m", "ruff", "check", *touched)
    passes(project, "-m", "ruff", "format", "--check", *touched)
    passes(project, "-m", "mypy", *sorted({*touched, *CONCERNED}))
    passes(project, "-c", CONTRACTS)


def passes(project: Project, *command: str, timeout: float = 240) -> None:
    """Run a command in the copy, and check that it succeeds."""
    outcome = project.run(*command, timeout=timeout)
    assert outcome.code == 0, f"{' '.join(command)}\n{outcome.out}{outcome.err}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return shipped_copy(tmp_path / "project")


@pytest.mark.thorough
def test_guide_creates_a_service_with_table_event_listener_route_and_tests(project: Project) -> None:
    carried_out(project, edits("Part 1"))
    added = ("tests/services/test_invoicing.py", "tests/http/test_invoices.py")
    concerned = (
        "tests/http/test_openapi.py",
        "tests/example/http/test_organizations.py",
        "tests/models/test_migrations.py",
        "tests/dependencies/test_completeness.py",
        "tests/dependencies/test_container.py",
    )
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *added, *concerned)


@pytest.mark.thorough
def test_foreign_key_without_ondelete_keeps_the_project_of_an_invoice(project: Project) -> None:
    for step in edits("Part 1"):
        project.apply(step)
    for name in ("models/invoicing.py", "models/migrations/versions/0004_invoices.py"):
        text = (project.path / name).read_text()
        assert text.count(', ondelete="SET NULL"') == 1
        (project.path / name).write_text(text.replace(', ondelete="SET NULL"', ""))
    (project.path / "tests/http/test_kept.py").write_text(KEPT)
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/http/test_kept.py")


@pytest.mark.thorough
@pytest.mark.timeout(2400)
def test_project_with_the_service_of_the_guide_passes_its_quick_tests(project: Project) -> None:
    for step in [*edits("Part 1"), *edits("Part 2"), *edits("Part 4")]:
        project.apply(step)
    passes(project, "-m", "pytest", "-q", "--collect-only", timeout=1200)
    quick = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not thorough")
    passes(project, *quick, *QUICK, timeout=1200)


def test_omitted_step_is_named_in_one_line(project: Project) -> None:
    for block in edits("Part 1"):
        if block.options["file"] != "dependencies/services.py":
            project.apply(block)
    outcome = project.run("-m", "beneath", "start", "all")
    (shown,) = (each for each in blocks(GUIDE, "text") if each.options.get("error") == "dependencies/services.py")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", shown.text)


@pytest.mark.thorough
def test_setting_and_startable_of_the_guide_work(project: Project) -> None:
    carried_out(project, [*edits("Part 1"), *edits("Part 2")])
    shown = project.run("-m", "beneath", "--set", "invoicing.project_price=700", "config", "show")
    assert ["invoicing.project_price", "700", "BENEATH_INVOICING_PROJECT_PRICE"] in [
        line.split() for line in shown.out.splitlines()
    ]
    refused = project.run("-m", "beneath", "start", "nonsense")
    assert "invoicing-report" in refused.err
    report = project.run("-c", REPORT)
    assert (report.code, report.out) == (0, "[0]\n"), report.err


@pytest.mark.thorough
def test_listener_of_the_guide_uses_data_of_another_service(project: Project) -> None:
    carried_out(project, edits("Part 4"))
    tests = ("tests/services/test_alert.py", "tests/dependencies/test_completeness.py")
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def test_part_about_data_of_another_service_applies_with_and_without_the_first_part(project: Project) -> None:
    for step in [*edits("Part 1"), *edits("Part 2"), *edits("Part 4")]:
        project.apply(step)
    passes(project, "-m", "ruff", "check", "services", "dependencies")
    passes(project, "-m", "ruff", "format", "--check", "services", "dependencies")


@pytest.mark.thorough
def test_written_migration_creates_the_tables_of_the_guide(project: Project) -> None:
    for step in edits("Part 1"):
        if step.options["file"] in {"models/invoicing.py", "models/__init__.py"}:
            project.apply(step)
    passes(project, "-m", "beneath", "migrate", "up")
    passes(project, "-m", "beneath", "migrate", "new", "Invoices")
    for command in (["format"], ["check", "--fix"], ["format", "--check"]):
        passes(project, "-m", "ruff", *command, "models/migrations/versions")
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/test_migrations.py")
