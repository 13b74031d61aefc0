"""The additions of `docs/extending.md`, made in a copy of the project."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.project import Project, copy_project

EXTENDING = ROOT / "docs" / "extending.md"

MOST_FILES = 3
"""The most files that a command or a listener option may touch."""

LISTED = """
from beneath.describe import event_description, explanation
from bus.testing import BusKit
from tests.bus.events import Ticked

async def on_tick(event: Ticked) -> None: ...

bus = BusKit().bus
bus.add_async_listener(on_tick, name="ticks", max_age=60)
print("\\n".join(explanation(event_description(bus.event_types["clock.ticked"], bus.listeners))))
"""

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(300)]


def edits(section: str) -> list[Block]:
    """Return the blocks of one section that write or change a file."""
    lines = EXTENDING.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines, start=1) if line.startswith("## ")]
    begin = lines.index(f"## {section}") + 1
    end = min((number for number in starts if number > begin), default=len(lines))
    return [each for each in blocks(EXTENDING) if begin < each.line < end and "file" in each.options]


def made(project: Project, steps: Sequence[Block]) -> list[str]:
    """Apply the blocks, check the changed files, and return their paths."""
    for step in steps:
        project.apply(step)
    touched = sorted({each.options["file"] for each in steps})
    passes(project, "-m", "ruff", "check", *touched)
    passes(project, "-m", "ruff", "format", "--check", *touched)
    passes(project, "-m", "mypy", *touched)
    return touched


def passes(project: Project, *command: str) -> str:
    """Run a command in the copy, check that it succeeds, and return its output."""
    outcome = project.run(*command)
    assert outcome.code == 0, f"{' '.join(command)}\n{outcome.out}{outcome.err}"
    return outcome.out


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path / "project")


def test_command_of_the_documentation_touches_few_files_and_works(project: Project) -> None:
    touched = made(project, edits("A command"))
    assert len(touched) <= MOST_FILES
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cli/test_bus_events.py")
    assert "List the events" in passes(project, "-m", "beneath", "bus", "--help")


def test_listener_option_of_the_documentation_touches_few_files_and_works(project: Project) -> None:
    touched = made(project, edits("A listener option"))
    assert len(touched) <= MOST_FILES
    tests = ("tests/bus/test_max_age.py", "tests/bus/test_arguments.py", "tests/bus/test_typing.py")
    passes(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert "  max_age: 60.0" in passes(project, "-c", LISTED).splitlines()
