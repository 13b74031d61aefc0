"""Histories of migrations, and the check at the start that a database has all of them.

The check does not import Alembic, which costs a process 10 MB and a tenth of a second; `infra.db.migrate` does.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import String, column, select, table
from sqlalchemy.exc import DBAPIError

from infra.db.database import Database

_REVISION = re.compile(r"""^revision = ["'](\w+)["']$""", re.MULTILINE)
_PREDECESSOR = re.compile(r"""^down_revision = (?:None|["'](\w+)["'])$""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class History:
    """A sequence of migrations: its name in messages, its package, and the table that stores a database's revision.

    `parts` are further packages whose `versions/` hold migrations of the same sequence.
    """

    name: str
    package: str
    version_table: str
    parts: tuple[str, ...] = ()


async def is_current(db: Database, histories: Sequence[History]) -> bool:
    """Return True if the database has exactly the migrations of this code.

    False may also mean that this check cannot tell: `infra.db.migrate` can, and explains what is wrong.

    Raises:
        DatabaseUnavailable: the database cannot be read now.
    """
    for history in histories:
        head = _head(history)
        if head is None or await _revisions(db, history) != [head]:
            return False
    return True


async def _revisions(db: Database, history: History) -> list[str]:
    """Return the revisions that the database stores for `history`; none if its table cannot be read."""
    stored = select(column("version_num", String)).select_from(table(history.version_table))
    try:
        async with db.read() as session:
            return list((await session.execute(stored)).scalars())
    except DBAPIError:
        return []


def _head(history: History) -> str | None:
    """Return the last revision of `history`; None unless each migration follows the one with the number before."""
    predecessors: dict[str, str | None] = {}
    try:
        for source in _sources(history):
            (revision,), (predecessor,) = _REVISION.findall(source), _PREDECESSOR.findall(source)
            if revision in predecessors:
                return None
            predecessors[revision] = predecessor or None
    except (ImportError, OSError, ValueError):
        return None  # a file or folder is missing, or not as `beneath migrate new` writes it
    revisions = sorted(predecessors)
    is_sequence = [predecessors[each] for each in revisions] == [None, *revisions[:-1]]
    return revisions[-1] if is_sequence else None


def _sources(history: History) -> Iterator[str]:
    """Return the text of each file that Alembic takes for a migration of `history`."""
    for package in (history.package, *history.parts):
        spec = find_spec(package)  # not importlib.resources: it would import the package, which may import Alembic
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in (Path(folder) / "versions").iterdir():
                if file.suffix == ".py" and not file.name.startswith((".#", "__init__")):
                    yield file.read_text("utf-8")
