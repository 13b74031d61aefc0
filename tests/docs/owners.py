"""Whose each file is, as the table in docs/upgrading.md says."""

import re
from functools import cache

from tests.docs.blocks import ROOT, prose

FRAMEWORK, YOURS = "the framework's", "yours"


@cache
def table() -> dict[str, str]:
    """Return the owner of each path in the table; the path of a folder ends with a slash."""
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", prose(ROOT / "docs" / "upgrading.md"), flags=re.MULTILINE)
    return {path: owner for paths, owner in rows for path in re.findall(r"`(.*?)`", paths)}


def whose(path: str) -> str | None:
    """Return the owner in the most specific row that covers a path; None if no row does."""
    rows = table()
    covering = [each for each in rows if path == each or (each.endswith("/") and path.startswith(each))]
    return rows[max(covering, key=len)] if covering else None
