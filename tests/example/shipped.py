"""A copy of the shipped project, for the pages whose steps begin with it."""

from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import ROOT
from tests.docs.project import Project, copy_project

SERVICES: Final = {"audit", "idempotency", "notification", "organization", "project", "secret", "user"}
"""The packages in `services/` that come with the project."""


def shipped_copy(path: Path) -> Project:
    """Copy the project; skip the test if the project has other services than the shipped ones."""
    found = {each.name for each in (ROOT / "services").iterdir() if (each / "__init__.py").exists()}
    if found != SERVICES:
        pytest.skip(f"the steps begin with the shipped services, and these differ: {sorted(found ^ SERVICES)}")
    return copy_project(path)
